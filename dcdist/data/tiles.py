"""The nine tiles of a jigsaw puzzle: cut, turned and exchanged, a batch at a time, on whatever device the batch is.

Every random number is drawn on the CPU from the generator that is passed, so a batch becomes the same on all devices.
Shapes: B images of S x S pixels, T = 9 tiles of s x s pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

GRID = 3  # cells a side
NUM_TILES = GRID**2
NUM_TURNS = 4  # multiples of 90 degrees
_SMALLEST_APERTURE = 2 / 3  # of the tile's side: Mundhenk et al. show 64 to 96 of 96 pixels
_FLAT_VARIANCE = 1e-4  # of colours in 0..1: the noise of a tile without contrast is not blown up


@dataclass(frozen=True)
class Tiles:
    """Cuts a tile out of each of 3 x 3 cells (Noroozi and Favaro, ECCV 2016).

    A cell's side is a third of the image's, rounded down. Between tiles there is a gap, on average as wide as a cell is
    wider than a tile; where tiles are jittered each by itself, two of them may now and then touch. Edges that go on in
    the next tile would solve a puzzle without a look at what it shows.
    The yoked jitter and the aperture are those of Mundhenk et al., CVPR 2018; their yoked resize is the view's zoom or
    random crop, which all tiles of an image have in common.
    """

    size: int  # s; the jitter is what the cell has more
    normalize: bool = True  # mean 0 and standard deviation 1 of each tile and colour, of what is seen of it; else the
    # puzzle is normalised as any view
    yoked_jitter: bool = False  # all tiles of an image lie at the same place of their cells
    random_aperture: float = 0.0  # share of an image's tiles of which only a random square is seen, the same of each

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a tile's size is {self.size}, it must be at least 1 pixel")
        if not 0 <= self.random_aperture <= 1:
            raise ValueError(f"random_aperture is {self.random_aperture}: a share of the tiles, 0..1")

    def require_fit(self, side: int) -> None:
        """Raises ValueError where a tile is larger than a cell of an image of this side."""
        if self.size > side // GRID:
            raise ValueError(
                f"a tile of {self.size} pixels does not fit a cell of {side // GRID}, a third of a puzzle of {side}: "
                f"set jigsaw.tile_size to at most {side // GRID}, or jigsaw.puzzle_size to at least {GRID * self.size}"
            )

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Float [B, 3, S, S] in 0..1 -> [B, T, 3, s, s], cells row by row, in channels_last memory.

        Args:
            images: the puzzles.
            generator: on the CPU; decides jitter and apertures.

        Raises:
            ValueError: a tile does not fit its cell.
        """
        self.require_fit(images.shape[2])
        tiles = self._cut(images, generator)
        seen = self._seen(len(images), generator).to(images.device, images.dtype)
        if self.normalize:
            count = seen.sum((3, 4), keepdim=True)
            tiles = tiles - (tiles * seen).sum((3, 4), keepdim=True) / count
            variance = (tiles.square() * seen).sum((3, 4), keepdim=True) / count
            tiles = tiles * torch.rsqrt(variance + _FLAT_VARIANCE)
        return tiles * seen  # what is not seen becomes the mean colour

    def _cut(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        count, cell = len(images), images.shape[2] // GRID
        jitter = torch.randint(
            cell - self.size + 1, (count, 1 if self.yoked_jitter else NUM_TILES, 2), generator=generator
        )
        cells = torch.cartesian_prod(torch.arange(GRID), torch.arange(GRID))  # [T, 2]: row and column
        starts = (cells * cell + jitter).unsqueeze(3)  # [B, T, 2, 1]
        pixels = (starts + torch.arange(self.size)).to(images.device)  # [B, T, 2, s]
        rows, columns = pixels[:, :, 0, :, None], pixels[:, :, 1, None, :]
        image = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
        return images.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 1, 4, 2, 3)

    def _seen(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Which pixels are seen: bool [B, T, 1, s, s] on the CPU."""
        side = torch.randint(round(self.size * _SMALLEST_APERTURE), self.size + 1, (count, 1), generator=generator)
        start = (torch.rand(count, 2, dtype=torch.float64, generator=generator) * (self.size - side + 1)).long()
        pixels = torch.arange(self.size)
        inside = (start.unsqueeze(2) <= pixels) & (pixels < (start + side).unsqueeze(2))  # [B, 2, s]
        square = inside[:, 0, :, None] & inside[:, 1, None, :]  # [B, s, s]
        whole = _random_orders(count, generator) >= round(self.random_aperture * NUM_TILES)
        return (whole[:, :, None, None] | square[:, None]).unsqueeze(2)


def turned(tiles: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Tiles [B, T, 3, s, s], each turned in place by turns [B] times 90 degrees counter-clockwise."""
    turns = turns.view(-1, 1, 1, 1, 1)
    result = tiles
    for number in range(1, NUM_TURNS):
        result = torch.where(turns == number, torch.rot90(tiles, number, (3, 4)), result)
    return result


def draw_distractors(
    sample_ids: torch.Tensor, at_most: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which places of each puzzle of a microbatch hold a tile of another one, and which tile: all different ones.

    Args:
        sample_ids: [B]; an image that is there twice is no other image.
        at_most: of each puzzle 0..at_most tiles are replaced, each number equally often.
        generator: on the CPU.

    Returns:
        distractors [B, T] bool, and for each place the puzzle that its tile would come from [B, T], the same one for
        all places of a puzzle, and the tile's place there [B, T]; on the device of `sample_ids`.

    Raises:
        ValueError: there is no other puzzle.
    """
    count = len(sample_ids)
    if count < 2:
        raise ValueError(
            "distractors come from other images of the microbatch, and there is 1 image in it: set "
            "train.microbatch_size to at least 2, or jigsaw.num_distractors to 0"
        )
    numbers = torch.randint(at_most + 1, (count, 1), generator=generator)
    distractors = _random_orders(count, generator) < numbers
    others = (torch.arange(count).unsqueeze(1) + torch.randint(1, count, (count, 1), generator=generator)) % count
    places = _random_orders(count, generator)
    distractors, others, places = (tensor.to(sample_ids.device) for tensor in (distractors, others, places))
    return distractors & (sample_ids[others] != sample_ids.unsqueeze(1)), others.expand(-1, NUM_TILES), places


def _random_orders(count: int, generator: torch.Generator) -> torch.Tensor:
    """Independent permutations of the tiles [count, T]: the places below n are n random ones."""
    return torch.rand(count, NUM_TILES, generator=generator).argsort(1)
