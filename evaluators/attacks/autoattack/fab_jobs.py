"""What FAB keeps while it runs: the job at each place of the batch, and the nearest point found for each image."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Jobs:
    """What each place of the batch, or of the queue, works on; int64 `(S,)` each.

    Attributes:
        image: row of the image.
        target: class, where there are targets.
        turn: rank of the target * restarts + restart.
        age: steps done.
    """

    image: Tensor
    target: Tensor
    turn: Tensor
    age: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: Tensor | slice) -> "Jobs":
        return Jobs(self.image[rows], self.target[rows], self.turn[rows], self.age[rows])

    def put(self, rows: Tensor, jobs: "Jobs") -> None:
        for name, values in vars(jobs).items():
            getattr(self, name)[rows] = values


@dataclass
class Found:
    """The nearest wrong image so far, `(N, D)`, and its distance, `(N,)`: infinite where there is none yet."""

    image: Tensor
    distance: Tensor

    def offer(self, rows: Tensor, points: Tensor, distance: Tensor, wrong: Tensor) -> None:
        """Take the points that are wrong and nearer. `rows` may hold an image several times, for several jobs."""
        better = (wrong & (distance < self.distance[rows])).nonzero()[:, 0]
        if not len(better):
            return
        self.distance.scatter_reduce_(0, rows[better], distance[better], "amin")
        better = better[distance[better] == self.distance[rows[better]]]
        # Of two equally near points the first, whatever the order in which a device writes.
        first = rows.new_full((len(self.distance),), len(rows))
        first.scatter_reduce_(0, rows[better], better, "amin")
        better = better[first[rows[better]] == better]
        self.image[rows[better]] = points[better]
