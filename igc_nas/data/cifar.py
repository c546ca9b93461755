"""CIFAR-10 and CIFAR-100: the layout of their archives, and the hashes of the official files."""

from __future__ import annotations

from dataclasses import dataclass

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """The files of a CIFAR dataset and their origin. `train_count` and `test_count` are images of a set."""

    name: str
    classes: int
    label_bytes: int
    folder: str
    python_folder: str
    train_files: tuple[str, ...]
    test_file: str
    train_count: int
    test_count: int
    archive: str
    archive_size: int
    archive_sha256: str
    python_archive_md5: str
    python_members: tuple[tuple[str, str, str], ...]
    """(name in the python layout, its MD5, name in the binary layout)."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def record(self) -> int:
        """Bytes of one image with its labels."""
        return self.label_bytes + PIXELS

    @property
    def url(self) -> str:
        """The address of the authors' binary archive."""
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"

    def files(self) -> dict[str, int]:
        """The number of images in each file."""
        each = self.train_count // len(self.train_files)
        return dict.fromkeys(self.train_files, each) | {self.test_file: self.test_count}


LAYOUTS: dict[str, Layout] = {
    "cifar10": Layout(
        name="cifar10",
        classes=10,
        label_bytes=1,
        folder="cifar-10-batches-bin",
        python_folder="cifar-10-batches-py",
        train_files=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test_file="test_batch.bin",
        train_count=50_000,
        test_count=10_000,
        archive="cifar-10-binary.tar.gz",
        archive_size=170_052_171,
        archive_sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        python_archive_md5="c58f30108f718f92721af3b95e74349a",
        python_members=(
            ("data_batch_1", "c99cafc152244af753f735de768cd75f", "data_batch_1.bin"),
            ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec", "data_batch_2.bin"),
            ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751", "data_batch_3.bin"),
            ("data_batch_4", "634d18415352ddfa80567beed471001a", "data_batch_4.bin"),
            ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb", "data_batch_5.bin"),
            ("test_batch", "40351d587109b95175f43aff81a1287e", "test_batch.bin"),
        ),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Layout(
        name="cifar100",
        classes=100,
        label_bytes=2,
        folder="cifar-100-binary",
        python_folder="cifar-100-python",
        train_files=("train.bin",),
        test_file="test.bin",
        train_count=50_000,
        test_count=10_000,
        archive="cifar-100-binary.tar.gz",
        archive_size=168_513_733,
        archive_sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        python_archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
        python_members=(
            ("train", "16019d7e3df5f24257cddd939b257f8d", "train.bin"),
            ("test", "f0ef6b0ae62326f3e7ffdfab6717acfc", "test.bin"),
        ),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}
