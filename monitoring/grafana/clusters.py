"""The balance of the clusters and how they change from one clustering to the next, by head."""

from __future__ import annotations

from monitoring.grafana import parts
from monitoring.grafana.parts import Board, Panel, above, below, between, heat, line, value

HEAD = "{{run}} head {{head}}"


def board() -> Board:
    return Board(
        uid="dcdist-clusters",
        about="The balance of the clusters and how they change from one clustering to the next, by head.",
        variables=("run", "stage", "head"),
        rows={
            "Newest clustering": newest(),
            "Sizes of the clusters": sizes(),
            "Balance": balance(),
            "Change": change(),
            "The clusterer": clusterer(),
        },
        time_from="now-24h",
    )


def of_head(metric: str, operation: str = "max") -> str:
    return f"{operation} by (run, head) ({metric}{{run, stage, head}})"


def newest() -> list[Panel]:
    return [
        value("Clusters", "K of each head.", of_head("dcdist_clusters"), parts.COUNT, legend=HEAD, width=4),
        value(
            "Entropy ratio",
            "Of the sizes: 1 where all are equal; above 0.8.",
            of_head("dcdist_cluster_size_entropy_ratio", "min"),
            parts.RATIO,
            above(0.8),
            legend=HEAD,
            width=4,
        ),
        value(
            "Imbalance",
            "K * sum n^2 / N^2: 1 where all are equal; under 4.",
            of_head("dcdist_cluster_imbalance_factor"),
            parts.RATIO,
            below(4),
            legend=HEAD,
            width=4,
        ),
        value(
            "Largest cluster",
            "Its share of the images: under 0.5, and under 20 / K.",
            of_head("dcdist_cluster_size_max_ratio"),
            parts.SHARE,
            below(0.5),
            legend=HEAD,
            width=4,
        ),
        value(
            "NMI with the clustering before",
            "0.1 to 0.98: lower, and the clusters are new each time; higher, and nothing is learned from them any "
            "more.",
            of_head("dcdist_assignment_nmi_ratio"),
            parts.RATIO,
            between(0.1, 0.98),
            legend=HEAD,
            width=4,
        ),
        value(
            "Clusterings",
            "In the time range.",
            "sum by (run) (increase(dcdist_clusterings_total{run, stage}[$__range]))",
            parts.COUNT,
            width=4,
        ),
    ]


def sizes() -> list[Panel]:
    buckets = "dcdist_cluster_size_ratio_bucket{run, stage, head}"
    return [
        heat(
            "Sizes, head $head",
            "Number of clusters by their size in multiples of the mean size N / K, at each clustering. Healthy is a "
            "band around 1, most of it between 1/4 and 4. A band that spreads or splits (many tiny ones and a few "
            "large ones) is the beginning of a collapse. With several runs or heads it is their sum.",
            f"sum by (le) (max by (run, head, le) ({buckets}))",
            parts.RATIO,
            parts.COUNT,
            repeat="head",
        ),
        line(
            "Quantiles of the sizes",
            "In multiples of the mean size. The lines between 1/4 and 4; 1 % far below are clusters that die, 99 % far "
            "above some that swallow others.",
            [
                (f"histogram_quantile({q / 100}, max by (run, head, le) ({buckets}))", f"{HEAD} {q} %")
                for q in (1, 10, 50, 90, 99)
            ],
            parts.RATIO,
            between(0.25, 4),
            logarithmic=True,
            width=24,
        ),
    ]


def balance() -> list[Panel]:
    return [
        line(
            "Entropy ratio",
            "Entropy of the sizes / log K. Above 0.8; below it for two clusterings is a collapse.",
            [(of_head("dcdist_cluster_size_entropy_ratio", "min"), HEAD)],
            parts.RATIO,
            above(0.8),
            maximum=1,
        ),
        line(
            "Imbalance",
            "K * sum n^2 / N^2: 1 where all are equal, K where one has everything. Under 4.",
            [(of_head("dcdist_cluster_imbalance_factor"), HEAD)],
            parts.RATIO,
            below(4),
            logarithmic=True,
        ),
        line(
            "Largest cluster",
            "Its share of the images, under the lines 20 / K and 0.5. Close to 1 everything is in one cluster.",
            [
                (of_head("dcdist_cluster_size_max_ratio"), HEAD),
                (f"20 / {of_head('dcdist_clusters')} < 1", f"{HEAD} 20 / K"),
            ],
            parts.SHARE,
            below(0.5),
            minimum=0,
        ),
    ]


def change() -> list[Panel]:
    return [
        line(
            "Images that changed cluster",
            "Of two clusterings matched one to one. Falls over the epochs; high at the end, the clusters do not "
            "settle.",
            [(of_head("dcdist_assignment_changed_ratio"), HEAD)],
            parts.SHARE,
            minimum=0,
            maximum=1,
        ),
        line(
            "NMI with the clustering before",
            "Rises between the lines. Above the upper one early in a stage, the clusters are frozen; below the lower "
            "one late, they are noise.",
            [(of_head("dcdist_assignment_nmi_ratio"), HEAD)],
            parts.RATIO,
            between(0.1, 0.98),
            minimum=0,
            maximum=1,
        ),
        line(
            "NMI with the labels",
            "Rises, where there are labels; training never sees them. Falling while the losses fall: the clusters "
            "follow something other than the classes.",
            [(of_head("dcdist_label_nmi_ratio"), HEAD)],
            parts.RATIO,
            minimum=0,
            maximum=1,
        ),
    ]


def clusterer() -> list[Panel]:
    return [
        line(
            "Refilled clusters",
            "Empty clusters that were filled from large ones, of K. Under 1 %; more, and K is too large for the "
            "features.",
            [(f"{of_head('dcdist_clusters_refilled')} / {of_head('dcdist_clusters')}", HEAD)],
            parts.SHARE,
            below(0.01),
            minimum=0,
        ),
        line(
            "Objective",
            "Mean squared distance of an image's row to its centroid. It depends on the features, so compare only "
            "neighbours in time: near 0, all features are the same.",
            [(of_head("dcdist_clustering_objective"), HEAD)],
            parts.RATIO,
            minimum=0,
        ),
        line(
            "Iterations",
            "Of the clusterer. Always the maximum that the config allows: it stops before it has converged.",
            [(of_head("dcdist_clustering_iterations"), HEAD)],
            parts.COUNT,
            minimum=0,
        ),
        line(
            "Draws per image",
            "Images that an epoch draws, over distinct ones among them: how often sampling evenly over clusters "
            "repeats images of small ones. Under 3.",
            [("max by (run) (dcdist_sampler_draws_per_image{run, stage})", "{{run}}")],
            parts.RATIO,
            below(3),
            minimum=0,
        ),
        line(
            "Number of clusters",
            "Constant within a stage.",
            [(of_head("dcdist_clusters"), HEAD)],
            parts.COUNT,
            minimum=0,
        ),
        line(
            "Clusterings in an hour",
            "As many as epochs, where each epoch clusters. It falls when features or clustering become slower.",
            [("sum by (run) (increase(dcdist_clusterings_total{run, stage}[1h]))", "{{run}}")],
            parts.COUNT,
            minimum=0,
        ),
    ]
