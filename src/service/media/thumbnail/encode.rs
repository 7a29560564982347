//! Thumbnails as files: PNG where something shines through, else JPEG. Both are on the specification's list of what may be shown inline,
//! and neither says anything of where the picture came from.

use std::slice::ChunksExact;

use jpeg_encoder::{ImageBuffer, JpegColorType, rgb_to_ycbcr};

use super::pixels::Pixels;
use super::{MadeThumbnail, ThumbnailError};

/// As Synapse has it.
const JPEG_QUALITY: u8 = 80;

/// The file.
pub fn encode(pixels: Pixels) -> Result<MadeThumbnail, ThumbnailError> {
    let Pixels { width, height, channels, bytes } = pixels;
    let opaque = channels == 3 || bytes.chunks_exact(4).all(|pixel| pixel[3] == 255);
    let (bytes, content_type) = if opaque {
        (jpeg(width, height, channels, &bytes)?, "image/jpeg")
    } else {
        (png(width, height, &bytes)?, "image/png")
    };
    Ok(MadeThumbnail { bytes, content_type, width, height })
}

/// A picture through which nothing shines, as the encoder asks for it, which is compiled for one kind of pictures this way instead of
/// for all that it knows.
struct Opaque<'p> {
    width: u16,
    height: u16,
    rows: ChunksExact<'p, u8>,
    /// How many bytes a pixel has: red, green, blue, and perhaps one that says nothing.
    channels: usize,
}

impl ImageBuffer for Opaque<'_> {
    fn get_jpeg_color_type(&self) -> JpegColorType {
        JpegColorType::Ycbcr
    }

    fn width(&self) -> u16 {
        self.width
    }

    fn height(&self) -> u16 {
        self.height
    }

    fn fill_buffers(&self, row: u16, [luma, blue, red, _]: &mut [Vec<u8>; 4]) {
        let row = self.rows.clone().nth(usize::from(row)).unwrap_or_default();
        for pixel in row.chunks_exact(self.channels) {
            let (y, cb, cr) = rgb_to_ycbcr(pixel[0], pixel[1], pixel[2]);
            luma.push(y);
            blue.push(cb);
            red.push(cr);
        }
    }
}

fn jpeg(width: u32, height: u32, channels: usize, bytes: &[u8]) -> Result<Vec<u8>, ThumbnailError> {
    let mut file = Vec::new();
    let sides = (u16::try_from(width), u16::try_from(height));
    let (Ok(width), Ok(height)) = sides else { return Err(ThumbnailError::TooLarge) };
    let rows = bytes.chunks_exact((usize::from(width) * channels).max(1));
    if rows.len() != usize::from(height) {
        return Err(ThumbnailError::broken("a picture that lacks rows"));
    }
    jpeg_encoder::Encoder::new(&mut file, JPEG_QUALITY)
        .encode_image(Opaque { width, height, rows, channels })
        .map_err(ThumbnailError::broken)?;
    Ok(file)
}

fn png(width: u32, height: u32, rgba: &[u8]) -> Result<Vec<u8>, ThumbnailError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Balanced);
    let mut writer = encoder.write_header().map_err(ThumbnailError::broken)?;
    writer.write_image_data(rgba).map_err(ThumbnailError::broken)?;
    writer.finish().map_err(ThumbnailError::broken)?;
    Ok(file)
}
