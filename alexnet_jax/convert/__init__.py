"""Weights of other programs, in and out. The command line is `__main__`."""

SOURCES = ("caffe", "torchvision", "safetensors")
# Each with the suffixes that its file may have; `import_weights` goes by them.
EXPORTS = {
    "safetensors": (".safetensors",),
    "torchvision": (".pth", ".pt", ".safetensors"),
    "caffe": (".caffemodel",),
    "stablehlo": (".stablehlo", ".bin"),
}
