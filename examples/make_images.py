"""Write the images beside this script: `python examples/make_images.py` makes `examples/images` again."""

from pathlib import Path

from stochcl.data.builtin import write_examples

if __name__ == "__main__":
    folder = Path(__file__).parent / "images"
    print(f"{write_examples(folder)} images in {folder}")
