//! The formats. Each decoder hands its rows on as soon as it has them; where a crate gives a picture only as a whole, what that takes is
//! counted before.

use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::num::NonZeroU64;
use std::time::Instant;

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::header::{Format, Picture, SIDE_MAX};
use super::pixels::Pixels;
use super::resize::Resizer;
use super::size::Plan;
use super::{Source, ThumbnailError};

/// What a decoder may take besides the thumbnail: a JPEG as large as cameras of telephones make them.
pub const DECODE_BYTES_MAX: u64 = 256 << 20;
/// Passes over the picture, in pixels. Progressive JPEGs have about ten passes.
const PASSES_PIXELS_MAX: u64 = 800_000_000;
/// What a decoder may take for what it is not asked for: other chunks of a PNG.
const PNG_CHUNK_BYTES_MAX: usize = 8 << 20;
/// So much is read at a time.
const READ_BYTES: usize = 64 << 10;

/// The picture, decoded and made smaller.
pub fn decode(
    file: &mut dyn Source,
    picture: &Picture,
    plan: &Plan,
    deadline: Instant,
) -> Result<Pixels, ThumbnailError> {
    file.rewind().map_err(ThumbnailError::broken)?;
    let mut file = Timed { file, deadline };
    let done = match picture.format {
        Format::Jpeg => jpeg(&mut file, picture, plan),
        Format::Png => png(file.buffered(), picture, plan),
        Format::Gif => gif(file.buffered(), picture, plan),
        Format::WebP => webp(file.buffered(), picture, plan),
    };
    if deadline <= Instant::now() { Err(ThumbnailError::TooSlow) } else { done }
}

/// A file that cannot be read any more after the deadline.
struct Timed<'f> {
    file: &'f mut dyn Source,
    deadline: Instant,
}

impl Timed<'_> {
    fn buffered(&mut self) -> BufReader<&mut Self> {
        BufReader::with_capacity(READ_BYTES, self)
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if Instant::now() >= self.deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.file.read(buffer)
    }
}

impl Seek for Timed<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

fn afford(bytes: u64) -> Result<(), ThumbnailError> {
    if bytes > DECODE_BYTES_MAX { Err(ThumbnailError::TooLarge) } else { Ok(()) }
}

/// Rows of a whole picture.
fn resize(plan: &Plan, picture: &Picture, channels: usize, bytes: &[u8]) -> Result<Pixels, ThumbnailError> {
    let mut resizer = Resizer::new(*plan, channels);
    for row in bytes.chunks_exact(picture.width as usize * channels) {
        resizer.push(row);
    }
    resizer.finish().ok_or_else(|| ThumbnailError::broken("rows are missing"))
}

/// Decoded at once: the crate knows no rows. What is missing of a file that was cut off is grey, as in browsers.
fn jpeg(file: &mut Timed<'_>, picture: &Picture, plan: &Plan) -> Result<Pixels, ThumbnailError> {
    let length = file.seek(SeekFrom::End(0)).map_err(ThumbnailError::broken)?;
    afford(length + 3 * picture.pixels())?;
    file.rewind().map_err(ThumbnailError::broken)?;
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(length).read_to_end(&mut bytes).map_err(ThumbnailError::broken)?;
    let scans = Scans::of(&bytes);
    let kept = if scans.keeps_coefficients { scans.coefficients(picture) * 2 } else { 0 };
    afford(length + 3 * picture.pixels() + kept)?;
    if scans.count.saturating_mul(picture.pixels()) > PASSES_PIXELS_MAX {
        return Err(ThumbnailError::TooLarge);
    }
    let options = DecoderOptions::default()
        .set_max_width(SIDE_MAX as usize)
        .set_max_height(SIDE_MAX as usize)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&bytes[..]), options);
    decoder.decode_headers().map_err(|e| ThumbnailError::broken(format!("{e:?}")))?;
    if decoder.dimensions() != Some((picture.width as usize, picture.height as usize)) {
        return Err(ThumbnailError::broken("two frame headers"));
    }
    let pixels = decoder.decode().map_err(|e| ThumbnailError::broken(format!("{e:?}")))?;
    if decoder.output_colorspace() != Some(ColorSpace::RGB) {
        return Err(ThumbnailError::Unsupported);
    }
    drop(decoder);
    drop(bytes);
    resize(plan, picture, 3, &pixels)
}

/// What the passes over a JPEG will take.
struct Scans {
    /// Upper bound: what looks like the beginning of one.
    count: u64,
    /// Whether all coefficients are kept until the last of them: progressive, or a component at a time.
    keeps_coefficients: bool,
    /// Horizontal and vertical samples of each component.
    sampling: Vec<(u64, u64)>,
}

impl Scans {
    fn of(file: &[u8]) -> Self {
        let count = file.windows(2).filter(|pair| *pair == [0xff, 0xda]).count() as u64;
        let mut scans = Self { count, keeps_coefficients: false, sampling: Vec::new() };
        let mut at = 2;
        // Whatever is not as it should be, the decoder judges.
        while let Some(&marker) = file.get(at) {
            if marker != 0xff || matches!(file.get(at + 1), None | Some(0xff | 0x00)) {
                at += 1;
                continue;
            }
            let marker = file[at + 1];
            if matches!(marker, 0x01 | 0xd0..=0xd8) {
                at += 2;
                continue;
            }
            let Some(&[high, low]) = file.get(at + 2..at + 4).and_then(|b| b.first_chunk()) else { break };
            let length = usize::from(u16::from_be_bytes([high, low]));
            let segment = file.get(at + 4..at + 2 + length).unwrap_or_default();
            match marker {
                0xc0..=0xc2 => {
                    let components = segment.get(6..).unwrap_or_default().chunks_exact(3);
                    scans.sampling =
                        components.map(|c| (u64::from(c[1] >> 4), u64::from(c[1] & 15))).take(4).collect();
                    scans.keeps_coefficients = marker == 0xc2;
                }
                0xda => {
                    let components = usize::from(segment.first().copied().unwrap_or(0));
                    scans.keeps_coefficients |= components != scans.sampling.len();
                    break;
                }
                _ => {}
            }
            at += 2 + length.max(2);
        }
        scans
    }

    /// How many.
    fn coefficients(&self, picture: &Picture) -> u64 {
        let most = |side: fn(&(u64, u64)) -> u64| self.sampling.iter().map(side).max().unwrap_or(1).max(1);
        let (across, down) = (most(|s| s.0), most(|s| s.1));
        let samples: u64 = self.sampling.iter().map(|s| s.0 * s.1).sum();
        // Rounded up to whole blocks of all components.
        let padded = |side: u32, of: u64| u64::from(side).next_multiple_of(8 * of);
        padded(picture.width, across) * padded(picture.height, down) * samples / (across * down)
    }
}

/// A row at a time, unless it is interlaced.
fn png(file: BufReader<&mut Timed<'_>>, picture: &Picture, plan: &Plan) -> Result<Pixels, ThumbnailError> {
    let mut decoder = png::Decoder::new_with_limits(file, png::Limits { bytes: PNG_CHUNK_BYTES_MAX });
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(png_error)?;
    let info = reader.info();
    if (info.width, info.height) != (picture.width, picture.height) {
        return Err(ThumbnailError::broken("two headers"));
    }
    let interlaced = info.interlaced;
    let (colours, depth) = reader.output_color_type();
    if depth != png::BitDepth::Eight {
        return Err(ThumbnailError::Unsupported);
    }
    let channels = match colours {
        png::ColorType::Grayscale | png::ColorType::Rgb => 3,
        png::ColorType::GrayscaleAlpha | png::ColorType::Rgba => 4,
        png::ColorType::Indexed => return Err(ThumbnailError::Unsupported),
    };
    let mut resizer = Resizer::new(*plan, channels);
    let mut wide = Vec::new();
    let mut push = |row: &[u8]| match colours {
        png::ColorType::Grayscale => {
            wide.clear();
            wide.extend(row.iter().flat_map(|grey| [*grey; 3]));
            resizer.push(&wide);
        }
        png::ColorType::GrayscaleAlpha => {
            wide.clear();
            wide.extend(row.chunks_exact(2).flat_map(|pixel| [pixel[0], pixel[0], pixel[0], pixel[1]]));
            resizer.push(&wide);
        }
        _ => resizer.push(row),
    };
    if interlaced {
        let size = reader.output_buffer_size().ok_or(ThumbnailError::TooLarge)?;
        afford(size as u64)?;
        let mut whole = vec![0; size];
        reader.next_frame(&mut whole).map_err(png_error)?;
        whole.chunks_exact(size / picture.height as usize).for_each(push);
    } else {
        for _ in 0..picture.height {
            let row = reader.next_row().map_err(png_error)?;
            push(row.ok_or_else(|| ThumbnailError::broken("rows are missing"))?.data());
        }
    }
    resizer.finish().ok_or_else(|| ThumbnailError::broken("rows are missing"))
}

fn png_error(e: png::DecodingError) -> ThumbnailError {
    match e {
        png::DecodingError::LimitsExceeded => ThumbnailError::TooLarge,
        e => ThumbnailError::broken(e),
    }
}

/// The first frame, on a canvas that is transparent where it is not covered.
fn gif(file: BufReader<&mut Timed<'_>>, picture: &Picture, plan: &Plan) -> Result<Pixels, ThumbnailError> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    // A frame may say that it is larger than what it is shown on.
    let limit =
        NonZeroU64::new(DECODE_BYTES_MAX / 4).map_or(gif::MemoryLimit::Unlimited, gif::MemoryLimit::Bytes);
    options.set_memory_limit(limit);
    options.allow_unknown_blocks(true);
    let mut decoder = options.read_info(file).map_err(gif_error)?;
    let global = decoder.global_palette().map(<[u8]>::to_vec).unwrap_or_default();
    let frame = decoder.read_next_frame().map_err(gif_error)?;
    let frame = frame.ok_or_else(|| ThumbnailError::broken("no frame"))?;
    let palette = frame.palette.as_deref().unwrap_or(&global);
    let colour = |index: u8| match palette.get(usize::from(index) * 3..).and_then(|rest| rest.first_chunk()) {
        Some(&[red, green, blue]) if frame.transparent != Some(index) => [red, green, blue, 255],
        _ => [0; 4],
    };
    let colours: Vec<[u8; 4]> = (0..=255).map(colour).collect();
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (width, height) = (usize::from(frame.width), usize::from(frame.height));
    let mut resizer = Resizer::new(*plan, 4);
    let mut row = vec![0; picture.width as usize * 4];
    for y in 0..picture.height as usize {
        row.fill(0);
        if let Some(indices) = y.checked_sub(top).filter(|y| *y < height) {
            let indices = &frame.buffer[indices * width..(indices + 1) * width];
            for (pixel, index) in row.chunks_exact_mut(4).skip(left).zip(indices) {
                pixel.copy_from_slice(&colours[usize::from(*index)]);
            }
        }
        resizer.push(&row);
    }
    resizer.finish().ok_or_else(|| ThumbnailError::broken("rows are missing"))
}

fn gif_error(e: gif::DecodingError) -> ThumbnailError {
    match e {
        gif::DecodingError::MemoryLimit | gif::DecodingError::OutOfMemory => ThumbnailError::TooLarge,
        e => ThumbnailError::broken(e),
    }
}

/// Decoded at once; of an animation, the first frame.
fn webp(file: BufReader<&mut Timed<'_>>, picture: &Picture, plan: &Plan) -> Result<Pixels, ThumbnailError> {
    let mut decoder = image_webp::WebPDecoder::new(file).map_err(webp_error)?;
    if decoder.dimensions() != (picture.width, picture.height) {
        return Err(ThumbnailError::broken("two headers"));
    }
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    // The picture, and then luma and chroma, or all samples; opacity apart, compressed like a picture; and for an animation a
    // canvas and the frame.
    let each = match (decoder.is_animated(), channels) {
        (true, _) => 18,
        (false, 4) => 11,
        (false, _) => 8,
    };
    afford(each * picture.pixels())?;
    let mut pixels = vec![0; picture.width as usize * picture.height as usize * channels];
    decoder.read_image(&mut pixels).map_err(webp_error)?;
    drop(decoder);
    resize(plan, picture, channels, &pixels)
}

fn webp_error(e: image_webp::DecodingError) -> ThumbnailError {
    match e {
        image_webp::DecodingError::MemoryLimitExceeded | image_webp::DecodingError::ImageTooLarge => {
            ThumbnailError::TooLarge
        }
        e => ThumbnailError::broken(e),
    }
}
