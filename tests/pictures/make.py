#!/usr/bin/env python3
"""Makes the pictures beside it, with Pillow, for the tests of thumbnails: each is 64 by 48 pixels in four quarters, red and green above,
blue and white below, unless its name says otherwise. They are kept as files because no crate of ours writes these formats."""

import struct
import zlib
from pathlib import Path

from PIL import Image, ImageDraw

HERE = Path(__file__).parent
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


def quarters(width=64, height=48, colours=COLOURS, mode="RGB"):
    picture = Image.new(mode, (width, height))
    draw = ImageDraw.Draw(picture)
    for n, colour in enumerate(colours):
        left, top = (n % 2) * width // 2, (n // 2) * height // 2
        draw.rectangle([left, top, left + width // 2 - 1, top + height // 2 - 1], fill=colour)
    return picture


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def interlaced_png(picture):
    """Adam7, which Pillow does not write."""
    width, height = picture.size
    raw = bytearray()
    for x0, y0, dx, dy in [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]:
        for y in range(y0, height, dy):
            row = [picture.getpixel((x, y)) for x in range(x0, width, dx)]
            if row:
                raw.append(0)
                for pixel in row:
                    raw.extend(pixel)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(raw), 9)) + chunk(b"IEND", b"")


def main():
    picture = quarters()
    picture.save(HERE / "baseline.jpg", quality=90)
    picture.save(HERE / "progressive.jpg", quality=90, progressive=True)
    picture.save(HERE / "progressive-444.jpg", quality=90, progressive=True, subsampling=0)
    picture.save(HERE / "restarts-422.jpg", quality=90, subsampling=1, restart_marker_rows=1)
    picture.convert("L").save(HERE / "grey.jpg", quality=90)
    picture.convert("CMYK").save(HERE / "cmyk.jpg", quality=90)

    (HERE / "interlaced.png").write_bytes(interlaced_png(picture))
    exif = Image.Exif()
    exif[0x0112] = 3
    picture.save(HERE / "upside-down.png", exif=exif)
    picture.save(HERE / "upside-down.webp", exif=exif, quality=90)
    frames = [picture, picture.transpose(Image.Transpose.ROTATE_180)]
    picture.save(HERE / "animated.png", save_all=True, append_images=frames[1:], duration=100)
    picture.save(HERE / "animated.gif", save_all=True, append_images=frames[1:], duration=100, loop=0)
    picture.save(HERE / "animated.webp", save_all=True, append_images=frames[1:], duration=100, quality=90)
    picture.save(HERE / "still.gif", interlace=1)
    picture.convert("P", palette=Image.Palette.ADAPTIVE).save(HERE / "palette.png")

    clear = quarters(colours=[(255, 0, 0, 255), (0, 255, 0, 128), (0, 0, 255, 0), (255, 255, 255, 255)], mode="RGBA")
    clear.save(HERE / "clear.webp", quality=90)
    clear.save(HERE / "clear-lossless.webp", lossless=True, exact=True)
    moving = [clear, clear.transpose(Image.Transpose.ROTATE_180)]
    clear.save(HERE / "clear-animated.webp", save_all=True, append_images=moving[1:], duration=100, quality=90)
    clear.save(HERE / "clear-animated-lossless.webp", save_all=True, append_images=moving[1:], duration=100, lossless=True)
    picture.save(HERE / "lossy.webp", quality=90)
    picture.save(HERE / "lossless.webp", lossless=True)

    # Different in its parts, so that the encoder uses many sets of Huffman codes.
    many = Image.new("RGB", (400, 300))
    state = 1
    for y in range(300):
        for x in range(400):
            state = (state * 1103515245 + 12345) & 0x7FFFFFFF
            noise = state >> 24
            part = (x // 50 + y // 50) % 4
            many.putpixel((x, y), [(x * 255 // 400, y * 255 // 300, 128), (noise & 15, noise, 7), (200, noise & 63, x & 255), (9, 9, 9)][part])
    many.save(HERE / "many-codes.webp", lossless=True, quality=100, method=6)


main()
