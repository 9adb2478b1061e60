"""Times image transforms: ``python -m tests.benchmarks.transform --images FOLDER``.

FOLDER holds ``train/<class>/`` with small JPEGs, such as those of CIFAR-10. All variants start from decoded images and
end with a float32 batch, resized to 224 pixels and normalised. They are interleaved within each round.
"""

import argparse
import platform
import statistics
import time

import torch
from torch.utils.data import default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from unlearnkit.data import DeviceTransform, imagenet_transform
from unlearnkit.data.transforms import IMAGENET_MEAN, IMAGENET_STD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, its own CPU time: for a busy machine")
    args = parser.parse_args()
    clock = time.perf_counter
    if args.cpu_time:
        torch.set_num_threads(1)
        clock = time.thread_time
    folder = ImageFolder(f"{args.images}/train")
    step = max(1, len(folder) // args.count)
    pictures = [folder[i * step][0] for i in range(args.count)]
    images = torch.stack([pil_to_tensor(picture) for picture in pictures])
    notebook = v2.Compose(
        [
            v2.Resize((224, 224)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD)),
        ]
    )
    one, many = imagenet_transform(224), DeviceTransform(image_size=224)
    starts = range(0, args.count, args.batch)

    def in_batches(pick, transform):
        for s in starts:
            default_collate([transform(x) for x in pick[s : s + args.batch]]).to(args.device)

    variants = {
        "the notebook: PIL, image by image": lambda: in_batches(pictures, notebook),
        "`imagenet_transform`, image by image": lambda: in_batches(images, one),
        "`DeviceTransform`, batch by batch": lambda: [many(images[s : s + args.batch].to(args.device)) for s in starts],
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(args.rounds + 1):
        for name, run in variants.items():
            start = clock()
            run()
            if args.device != "cpu":
                torch.cuda.synchronize()
            if number:
                times[name].append(clock() - start)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, device {args.device}")
    print(f"{args.count} images, batches of {args.batch}\n| what | ms an image | × faster |\n|---|---|---|")
    base = next(iter(times.values()))
    for name, each in times.items():
        ratio = statistics.median(b / t for b, t in zip(base, each, strict=True))
        print(f"| {name} | {statistics.median(each) / args.count * 1e3:.3f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
