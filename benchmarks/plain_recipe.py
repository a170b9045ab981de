"""One DeepCluster epoch as a user would write it from the paper: ImageFolder, Pillow transforms, one process, faiss.

It is what the benchmark compares with; precision and memory layout are switches, everything else is the usual way.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WARM_UP = 2


class PlainAlexNet(nn.Module):
    """The published network with its two-convolution Sobel stem."""

    def __init__(self, num_clusters: int) -> None:
        super().__init__()
        grey = nn.Conv2d(3, 1, 1)
        edges = nn.Conv2d(1, 2, 3, padding=1)
        assert grey.bias is not None
        assert edges.bias is not None
        with torch.no_grad():
            grey.weight.fill_(1 / 3)
            grey.bias.zero_()
            edges.weight[0, 0] = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
            edges.weight[1, 0] = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]])
            edges.bias.zero_()
        self.sobel = nn.Sequential(grey, edges)
        for parameter in self.sobel.parameters():
            parameter.requires_grad = False
        layers: list[nn.Module] = []
        channels = 2
        for width, kernel, stride, padding, pool in (
            (96, 11, 4, 2, True),
            (256, 5, 1, 2, True),
            (384, 3, 1, 1, False),
            (384, 3, 1, 1, False),
            (256, 3, 1, 1, True),
        ):
            layers += [
                nn.Conv2d(channels, width, kernel, stride, padding),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            if pool:
                layers.append(nn.MaxPool2d(3, 2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(9216, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4096, 4096)
        )
        self.head = nn.Linear(4096, num_clusters)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(self.sobel(images)).flatten(1))


class _Relabelled(Dataset[Any]):
    def __init__(self, images: Dataset[Any], targets: np.ndarray) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index][0], int(self.targets[index])


def run_epoch(
    folder: Path, num_clusters: int, batch_size: int, num_workers: int, bfloat16: bool, channels_last: bool
) -> dict[str, float]:
    """Images per second in features and in training, seconds of the phases.

    Two batches go through the network in both modes before the clock starts, so that what the libraries do once is
    not counted.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = PlainAlexNet(num_clusters).to(memory_format=layout)
    normalise = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    evaluation = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *normalise])
    training = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *normalise])
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], 0.05, momentum=0.9, weight_decay=1e-5
    )
    loss_function = nn.CrossEntropyLoss()

    def load(dataset: Dataset[Any], shuffle: bool) -> Iterator[Any]:
        for images, targets in DataLoader(
            dataset, batch_size, shuffle=shuffle, num_workers=num_workers, drop_last=shuffle
        ):
            yield images.to(memory_format=layout), targets

    def features_of(images: torch.Tensor) -> np.ndarray:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            return model(images).float().numpy()

    def train_on(images: torch.Tensor, labels: torch.Tensor) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            loss = loss_function(model.head(torch.relu(model(images))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    warm = torch.randn(batch_size, 3, 224, 224).to(memory_format=layout)
    for _ in range(WARM_UP):
        features_of(warm)
        train_on(warm, torch.zeros(batch_size, dtype=torch.int64))

    started = time.perf_counter()
    model.eval()
    images_in_order = datasets.ImageFolder(folder, evaluation)
    features = np.concatenate([features_of(images) for images, _ in load(images_in_order, shuffle=False)])
    features_done = time.perf_counter()
    pca = faiss.PCAMatrix(features.shape[1], 256, -0.5)
    pca.train(features)
    reduced = pca.apply_py(features)
    reduced /= np.linalg.norm(reduced, axis=1, keepdims=True)
    kmeans = faiss.Clustering(256, num_clusters)
    kmeans.niter, kmeans.max_points_per_centroid = 20, 10_000_000
    kmeans.min_points_per_centroid = 1
    index = faiss.IndexFlatL2(256)
    kmeans.train(reduced, index)
    targets = index.search(reduced, 1)[1].ravel()
    clustering_done = time.perf_counter()
    model.train()
    num_trained = 0
    for images, labels in load(_Relabelled(datasets.ImageFolder(folder, training), targets), shuffle=True):
        train_on(images, labels)
        num_trained += len(images)
    training_done = time.perf_counter()
    return {
        "features": len(features) / (features_done - started),
        "training": num_trained / (training_done - clustering_done),
        "features_seconds": features_done - started,
        "clustering_seconds": clustering_done - features_done,
        "training_seconds": training_done - clustering_done,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    for name in ("num-clusters", "batch-size", "threads", "workers"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    result = run_epoch(
        arguments.folder,
        arguments.num_clusters,
        arguments.batch_size,
        arguments.workers,
        arguments.bfloat16,
        arguments.channels_last,
    )
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
