//! Thumbnails as files: PNG where something shines through, else JPEG. Both are on the specification's list of what may be shown inline,
//! and neither says anything of where the picture came from.

use super::resize::Pixels;
use super::{MadeThumbnail, ThumbnailError};

/// As Synapse has it.
const JPEG_QUALITY: u8 = 80;

/// The file.
pub fn encode(pixels: Pixels) -> Result<MadeThumbnail, ThumbnailError> {
    let Pixels { width, height, channels, mut bytes } = pixels;
    let opaque = channels == 3 || bytes.chunks_exact(4).all(|pixel| pixel[3] == 255);
    if opaque && channels == 4 {
        bytes = bytes.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
    }
    let (bytes, content_type) = if opaque {
        (jpeg(width, height, &bytes)?, "image/jpeg")
    } else {
        (png(width, height, &bytes)?, "image/png")
    };
    Ok(MadeThumbnail { bytes, content_type, width, height })
}

fn jpeg(width: u32, height: u32, rgb: &[u8]) -> Result<Vec<u8>, ThumbnailError> {
    let mut file = Vec::new();
    let sides = (u16::try_from(width), u16::try_from(height));
    let (Ok(width), Ok(height)) = sides else { return Err(ThumbnailError::TooLarge) };
    jpeg_encoder::Encoder::new(&mut file, JPEG_QUALITY)
        .encode(rgb, width, height, jpeg_encoder::ColorType::Rgb)
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
