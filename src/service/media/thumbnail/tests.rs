//! Thumbnails of real files in every format, and of files that mean harm.

use std::io::Cursor;
use std::time::{Duration, Instant};

use super::*;

/// The files that `tests/pictures/make.py` made, by their names.
macro_rules! pictures {
    ($($name:literal,)*) => {
        &[$(($name, include_bytes!(concat!("../../../../tests/pictures/", $name)).as_slice()),)*]
    };
}

/// Four quarters each: red and green above, blue and white below.
const OPAQUE: &[(&str, &[u8])] = pictures![
    "baseline.jpg",
    "progressive.jpg",
    "progressive-444.jpg",
    "restarts-422.jpg",
    "interlaced.png",
    "animated.png",
    "animated.gif",
    "animated.webp",
    "still.gif",
    "palette.png",
    "lossy.webp",
    "lossless.webp",
    "upside-down.png",
    "upside-down.webp",
];

/// The same, but green is half transparent and blue is not seen.
const CLEAR: &[(&str, &[u8])] =
    pictures!["clear.webp", "clear-lossless.webp", "clear-animated.webp", "clear-animated-lossless.webp",];

const OTHERS: &[(&str, &[u8])] = pictures!["grey.jpg", "cmyk.jpg", "many-codes.webp",];

const CROP_32: ThumbnailSize = ThumbnailSize { width: 32, height: 32, method: Method::Crop };
const SCALE_320: ThumbnailSize = ThumbnailSize { width: 320, height: 240, method: Method::Scale };

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn file(name: &str) -> &'static [u8] {
    let all = [OPAQUE, CLEAR, OTHERS].concat();
    all.into_iter().find(|(of, _)| *of == name).expect("one of the pictures").1
}

fn thumbnail(bytes: &[u8], size: ThumbnailSize) -> Result<MadeThumbnail, ThumbnailError> {
    let mut file = Cursor::new(bytes);
    let picture = look(&mut file)?;
    make(&mut file, &picture, size, soon())
}

/// A thumbnail's pixels, as four samples each.
fn pixels(made: &MadeThumbnail) -> Vec<[u8; 4]> {
    let bytes = &made.bytes[..];
    if made.content_type == "image/png" {
        let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("small")];
        reader.next_frame(&mut pixels).expect("a PNG");
        pixels.chunks_exact(4).map(|pixel| pixel.try_into().expect("four")).collect()
    } else {
        let mut decoder = zune_jpeg::JpegDecoder::new(zune_jpeg::zune_core::bytestream::ZCursor::new(bytes));
        let pixels = decoder.decode().expect("a JPEG");
        pixels.chunks_exact(3).map(|pixel| [pixel[0], pixel[1], pixel[2], 255]).collect()
    }
}

/// The middle of each quarter.
fn quarters(made: &MadeThumbnail) -> [[u8; 4]; 4] {
    let (pixels, width, height) = (pixels(made), made.width as usize, made.height as usize);
    let at = |x: usize, y: usize| pixels[y * width + x];
    let (left, right, top, bottom) = (width / 4, width * 3 / 4, height / 4, height * 3 / 4);
    [at(left, top), at(right, top), at(left, bottom), at(right, bottom)]
}

fn assert_close(name: &str, found: [[u8; 4]; 4], wanted: [[u8; 4]; 4]) {
    for (found, wanted) in found.iter().flatten().zip(wanted.iter().flatten()) {
        assert!(found.abs_diff(*wanted) <= 12, "{name}: {found:?} is not {wanted:?}");
    }
}

const RED: [u8; 4] = [255, 0, 0, 255];
const GREEN: [u8; 4] = [0, 255, 0, 255];
const BLUE: [u8; 4] = [0, 0, 255, 255];
const WHITE: [u8; 4] = [255; 4];

#[test]
fn a_picture_of_each_format_becomes_smaller_and_looks_the_same() {
    for (name, bytes) in OPAQUE {
        let made = thumbnail(bytes, CROP_32).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert_eq!((made.width, made.height, made.content_type), (32, 32, "image/jpeg"), "{name}");
        let wanted = [RED, GREEN, BLUE, WHITE];
        let turned = [WHITE, BLUE, GREEN, RED];
        assert_close(name, quarters(&made), if name.starts_with("upside") { turned } else { wanted });
    }
    for (name, bytes) in CLEAR {
        let made = thumbnail(bytes, CROP_32).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert_eq!((made.width, made.height, made.content_type), (32, 32, "image/png"), "{name}");
        let [red, green, blue, white] = quarters(&made);
        assert_close(name, [red, green, [0, 0, 0, blue[3]], white], [RED, [0, 255, 0, 128], [0; 4], WHITE]);
    }
    assert_close(
        "grey.jpg",
        quarters(&thumbnail(file("grey.jpg"), CROP_32).expect("grey")),
        [76_u8, 149, 29, 255].map(|grey| [grey, grey, grey, 255]),
    );
    assert_close(
        "cmyk.jpg",
        quarters(&thumbnail(file("cmyk.jpg"), CROP_32).expect("four inks")),
        [RED, GREEN, BLUE, WHITE],
    );
    let made = thumbnail(file("many-codes.webp"), SCALE_320).expect("many codes");
    assert_eq!((made.width, made.height), (320, 240));
}

#[test]
fn how_the_camera_was_held_is_applied_and_nothing_else_of_the_metadata_is_kept() {
    let corners = [
        [RED, GREEN, BLUE, WHITE],
        [GREEN, RED, WHITE, BLUE],
        [WHITE, BLUE, GREEN, RED],
        [BLUE, WHITE, RED, GREEN],
        [RED, BLUE, GREEN, WHITE],
        [BLUE, RED, WHITE, GREEN],
        [WHITE, GREEN, BLUE, RED],
        [GREEN, WHITE, RED, BLUE],
    ];
    for orientation in 1..=8 {
        let plain = file("baseline.jpg");
        let exif = [b"Exif\0\0".as_slice(), &exif::tests::exif(orientation, orientation % 2 == 0)].concat();
        let length = (exif.len() as u16 + 2).to_be_bytes();
        let jpeg = [&plain[..2], &[0xff, 0xe1], &length, &exif, &plain[2..]].concat();
        let picture = look(&mut Cursor::new(&jpeg)).expect("a picture");
        let upright = if orientation >= 5 { (48, 64) } else { (64, 48) };
        assert_eq!(picture.upright(), upright, "orientation {orientation}");
        let made = thumbnail(&jpeg, CROP_32).expect("a thumbnail");
        assert_close("turned", quarters(&made), corners[usize::from(orientation) - 1]);
        assert!(!made.bytes.windows(4).any(|part| part == b"Exif"));
        let size = ThumbnailSize { width: 30, height: 30, method: Method::Scale };
        let made = thumbnail(&jpeg, size).expect("a thumbnail");
        let sides = if orientation >= 5 { (22, 30) } else { (30, 22) };
        assert_eq!((made.width, made.height), sides, "orientation {orientation}");
    }
}

/// A PNG of 64 by 48 whose rows are these bytes.
fn png_of(
    colours: png::ColorType,
    depth: png::BitDepth,
    row: &[u8],
    palette: Option<(&[u8], &[u8])>,
) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, 64, 48);
    encoder.set_color(colours);
    encoder.set_depth(depth);
    if let Some((colours, opacity)) = palette {
        encoder.set_palette(colours.to_vec());
        encoder.set_trns(opacity.to_vec());
    }
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(&row.repeat(48)).expect("rows");
    writer.finish().expect("an end");
    file
}

#[test]
fn each_kind_of_colours_of_a_png_is_read() {
    use png::BitDepth::{Eight, Four, One, Sixteen, Two};
    use png::ColorType::{Grayscale, GrayscaleAlpha, Indexed, Rgb, Rgba};
    let half =
        |first: &[u8], second: &[u8], times: usize| [first.repeat(times), second.repeat(times)].concat();
    let grey = |one: u8, two: u8| [[one, one, one, 255], [two, two, two, 255]];
    let cases = [
        ("1 bit", png_of(Grayscale, One, &half(&[0xff], &[0], 4), None), grey(255, 0)),
        ("2 bits", png_of(Grayscale, Two, &half(&[0xaa], &[0x55], 8), None), grey(170, 85)),
        ("4 bits", png_of(Grayscale, Four, &half(&[0x33], &[0xcc], 16), None), grey(51, 204)),
        ("16 bits", png_of(Grayscale, Sixteen, &half(&[100, 7], &[200, 9], 32), None), grey(100, 200)),
        (
            "grey and opacity",
            png_of(GrayscaleAlpha, Eight, &half(&[80, 255], &[90, 0], 32), None),
            [[80, 80, 80, 255], [0; 4]],
        ),
        (
            "48 bits",
            png_of(Rgb, Sixteen, &half(&[255, 255, 0, 0, 9, 9], &[9, 9, 0, 0, 255, 255], 32), None),
            [[255, 0, 9, 255], [9, 0, 255, 255]],
        ),
        (
            "64 bits",
            png_of(Rgba, Sixteen, &half(&[255, 255, 0, 0, 9, 9, 255, 255], &[0; 8], 32), None),
            [[255, 0, 9, 255], [0; 4]],
        ),
        (
            "a palette with a transparent colour",
            png_of(Indexed, Four, &half(&[0x11], &[0x00], 16), Some((&[1, 2, 3, 250, 100, 0], &[0]))),
            [[250, 100, 0, 255], [0; 4]],
        ),
    ];
    for (name, png, [left, right]) in cases {
        let made = thumbnail(&png, CROP_32).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert_close(name, quarters(&made), [left, right, left, right]);
    }
}

#[test]
fn what_moves_is_told_from_what_stands_still() {
    let moves = |name: &str| {
        let mut file = Cursor::new(file(name));
        let picture = look(&mut file).expect("a picture");
        is_animated(&mut file, &picture).expect("readable")
    };
    for name in ["animated.png", "animated.gif", "animated.webp", "clear-animated-lossless.webp"] {
        assert!(moves(name), "{name}");
    }
    for name in ["baseline.jpg", "interlaced.png", "still.gif", "lossy.webp", "lossless.webp", "clear.webp"] {
        assert!(!moves(name), "{name}");
    }
}

/// A GIF with so many frames of one pixel, on a canvas of this size.
fn gif_of(frames: usize, canvas: (u16, u16), frame: (u16, u16)) -> Vec<u8> {
    let sides = |(width, height): (u16, u16)| [width.to_le_bytes(), height.to_le_bytes()].concat();
    let mut gif = [b"GIF89a".as_slice(), &sides(canvas), &[0x80, 0, 0, 1, 2, 3, 4, 5, 6]].concat();
    for _ in 0..frames {
        gif.extend([b",\0\0\0\0".as_slice(), &sides(frame), &[0, 2, 2, 0x44, 0x01, 0]].concat());
    }
    gif.push(b';');
    gif
}

#[test]
fn a_hundred_thousand_frames_cost_what_one_does() {
    let gif = gif_of(100_000, (400, 300), (1, 1));
    let mut counted = Counted { file: Cursor::new(&gif[..]), bytes: 0 };
    let picture = look(&mut counted).expect("a picture");
    assert!(is_animated(&mut counted, &picture).expect("readable"));
    let made = make(&mut counted, &picture, CROP_32, soon()).expect("a thumbnail");
    assert_eq!((made.width, made.height), (32, 32));
    assert!(counted.bytes < 256 << 10, "{} of {} bytes were read", counted.bytes, gif.len());
}

struct Counted<'b> {
    file: Cursor<&'b [u8]>,
    bytes: usize,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let got = self.file.read(buffer)?;
        self.bytes += got;
        Ok(got)
    }
}

impl Seek for Counted<'_> {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        self.file.seek(to)
    }
}

/// Bits from the lowest of each byte, as VP8L has them.
#[derive(Default)]
struct BitWriter {
    bytes: Vec<u8>,
    count: usize,
}

impl BitWriter {
    fn put(&mut self, value: u32, bits: usize) {
        for n in 0..bits {
            if self.count.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let last = self.bytes.len() - 1;
            self.bytes[last] |= ((value >> n & 1) as u8) << (self.count % 8);
            self.count += 1;
        }
    }

    /// A code whose only symbol this is.
    fn only(&mut self, symbol: u32) {
        self.put(0b101, 3);
        self.put(symbol, 8);
    }
}

/// The data of a lossless WebP whose blocks choose the last of so many sets of codes, which are not there.
fn vp8l_with_groups(groups: u32) -> Vec<u8> {
    let mut bits = BitWriter::default();
    // No transform, no cache; choices, for blocks of 4 by 4.
    bits.put(0b100, 3);
    bits.put(0, 3);
    // Of them: no cache; green, red, blue, opacity, distance.
    bits.put(0, 1);
    let last = groups - 1;
    [last & 0xff, last >> 8, 0, 0, 0].into_iter().for_each(|symbol| bits.only(symbol));
    bits.bytes.extend([0; 4096]);
    bits.bytes
}

fn riff(chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut body = b"WEBP".to_vec();
    for (kind, data) in chunks {
        body.extend(*kind);
        body.extend((data.len() as u32).to_le_bytes());
        body.extend(data);
        body.extend(vec![0; data.len() % 2]);
    }
    [b"RIFF".as_slice(), &(body.len() as u32).to_le_bytes(), &body].concat()
}

#[test]
fn a_webp_that_would_have_its_decoder_keep_a_gigabyte_of_codes_is_too_large() {
    let check = |groups| vp8l::check(&mut &vp8l_with_groups(groups)[..], 400, 300);
    assert_eq!(check(65_536), Err(ThumbnailError::TooLarge));
    assert_eq!(check(1_001), Err(ThumbnailError::TooLarge));
    assert_eq!(check(1_000), Ok(()));
    let header = [0x2f_u32 | 399 << 8 | 299 << 22].map(u32::to_le_bytes).concat();
    let data = |groups| [&header[..], &[(299 >> 10) as u8], &vp8l_with_groups(groups)].concat();
    assert_eq!(
        thumbnail(&riff(&[(b"VP8L", data(65_536))]), SCALE_320).unwrap_err(),
        ThumbnailError::TooLarge
    );
    // The same as the opacity of a picture, and within a frame of an animation.
    let canvas = |flags: u8| vec![flags, 0, 0, 0, 143, 1, 0, 43, 1, 0];
    let alpha = [&[1][..], &vp8l_with_groups(65_536)].concat();
    let opacity = riff(&[(b"VP8X", canvas(0x10)), (b"ALPH", alpha.clone())]);
    assert_eq!(thumbnail(&opacity, SCALE_320).unwrap_err(), ThumbnailError::TooLarge);
    let frame = |data: Vec<u8>, kind: &[u8; 4]| {
        let sizes = [0, 0, 0, 0, 0, 0, 143, 1, 0, 43, 1, 0, 0, 0, 0, 0];
        [&sizes[..], kind, &(data.len() as u32).to_le_bytes(), &data].concat()
    };
    for (data, kind) in [(data(65_536), b"VP8L"), (alpha, b"ALPH")] {
        let moving = riff(&[(b"VP8X", canvas(2)), (b"ANIM", vec![0; 6]), (b"ANMF", frame(data, kind))]);
        assert_eq!(thumbnail(&moving, SCALE_320).unwrap_err(), ThumbnailError::TooLarge);
    }
}

#[test]
fn a_picture_of_more_pixels_than_its_file_is_worth_is_refused_by_its_header() {
    let too_large = |bytes: &[u8]| {
        let mut counted = Counted { file: Cursor::new(bytes), bytes: 0 };
        assert_eq!(look(&mut counted).unwrap_err(), ThumbnailError::TooLarge);
        assert!(counted.bytes <= 64 << 10);
    };
    let mut png = file("palette.png").to_vec();
    png[16..24].copy_from_slice(&[0, 0, 0x27, 0x10, 0, 0, 0x27, 0x10]);
    too_large(&png);
    png[16..24].copy_from_slice(&[0, 0, 0, 1, 0, 1, 0, 0]);
    too_large(&png);
    let mut jpeg = file("baseline.jpg").to_vec();
    let at = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).expect("a frame header") + 5;
    jpeg[at..at + 4].fill(0xff);
    too_large(&jpeg);
    too_large(&gif_of(1, (0xffff, 0xffff), (1, 1)));
    let mut webp = file("lossy.webp").to_vec();
    webp[26..30].copy_from_slice(&[0xff, 0x3f, 0xff, 0x3f]);
    too_large(&webp);
    // Inside of what says that it is small.
    let huge = thumbnail(&gif_of(1, (400, 300), (0xffff, 0xffff)), SCALE_320);
    assert_eq!(huge.unwrap_err(), ThumbnailError::TooLarge);
    let inside = riff(&[(b"VP8X", vec![0, 0, 0, 0, 63, 0, 0, 47, 0, 0]), (b"VP8 ", webp[20..].to_vec())]);
    assert!(matches!(thumbnail(&inside, CROP_32), Err(ThumbnailError::Broken(_))));
}

#[test]
fn a_jpeg_of_many_passes_and_a_deadline_that_is_over_are_too_much() {
    let mut picture = look(&mut Cursor::new(file("progressive.jpg"))).expect("a picture");
    let passes = [file("progressive.jpg"), &[0xff, 0xda].repeat(300_000)].concat();
    let made = make(&mut Cursor::new(&passes), &picture, CROP_32, soon());
    assert_eq!(made.unwrap_err(), ThumbnailError::TooLarge);
    for (name, bytes) in [OPAQUE, CLEAR].concat() {
        picture = look(&mut Cursor::new(bytes)).expect("a picture");
        let made = make(&mut Cursor::new(bytes), &picture, CROP_32, Instant::now());
        assert_eq!(made.unwrap_err(), ThumbnailError::TooSlow, "{name}");
    }
}

#[test]
fn what_is_no_picture_is_none_whatever_it_is_called_and_a_picture_with_a_script_in_it_loses_it() {
    for other in [
        &b""[..],
        b"GIF",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<!DOCTYPE html><script>alert(1)</script>",
        b"\0\0\0\x20ftypavif\0\0\0\0avifmif1",
        b"\0\0\0\x20ftypheic\0\0\0\0heicmif1",
        b"BM\x9a\0\0\0\0\0\0\0",
        b"%PDF-1.7\n",
        b"RIFF\x10\0\0\0WAVEfmt ",
    ] {
        assert_eq!(thumbnail(other, CROP_32).unwrap_err(), ThumbnailError::Unsupported);
    }
    let script = b"<script>alert(1)</script>";
    for (name, bytes) in OPAQUE {
        let both = [bytes, &script[..]].concat();
        let made = thumbnail(&both, CROP_32).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert!(!made.bytes.windows(script.len()).any(|part| part == script));
    }
}

#[test]
fn files_that_were_cut_off_or_changed_at_random_are_judged_and_nothing_worse() {
    for (name, bytes) in [OPAQUE, CLEAR, &OTHERS[..2]].concat() {
        for cut in 0..bytes.len() {
            drop(thumbnail(&bytes[..cut], CROP_32));
        }
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        for _ in 0..60 {
            let mut changed = bytes.to_vec();
            for _ in 0..1 + random() % 4 {
                let at = random() % changed.len();
                changed[at] = random() as u8;
            }
            if let Ok(made) = thumbnail(&changed, CROP_32) {
                assert!(made.width <= 32 && made.height <= 32, "{name}");
            }
        }
    }
}

#[test]
fn a_file_of_nothing_but_parts_is_not_gone_through_to_its_end() {
    let whole = file("lossy.webp");
    let filled = |count: usize| {
        let mut body = [&whole[8..], &b"JUNK\0\0\0\0".repeat(count)].concat();
        body.splice(0..0, [b"RIFF".as_slice(), &(body.len() as u32).to_le_bytes()].concat());
        body
    };
    look(&mut Cursor::new(filled(5_000))).expect("a picture with a few more parts");
    let jpeg = file("baseline.jpg");
    // Behind its first segment.
    let end = 4 + usize::from(u16::from_be_bytes([jpeg[4], jpeg[5]]));
    let late = |bytes: usize| [&jpeg[..end], &vec![0; bytes], &jpeg[end..]].concat();
    look(&mut Cursor::new(late(1_000))).expect("a picture, as browsers show it");
    let blocks = [b"GIF89a\x90\x01\x2c\x01\0\0\0!\xfe".as_slice(), &[1, b'x'].repeat(3 << 20)].concat();
    for (name, bytes) in [("webp", filled(1 << 20)), ("jpeg", late(8 << 20)), ("gif", blocks)] {
        let mut counted = Counted { file: Cursor::new(&bytes[..]), bytes: 0 };
        let looked = look(&mut counted).and_then(|picture| is_animated(&mut counted, &picture));
        assert!(looked.is_err(), "{name}");
        assert!(counted.bytes <= 3 << 20, "{name}: {} bytes were read", counted.bytes);
    }
}
