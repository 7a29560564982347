//! Files that are to be thumbnails.

use std::io::Cursor;
use std::time::{Duration, Instant};

use doorstep::internals::thumbnail::{Method, ThumbnailRequest, ThumbnailSize, is_animated, look, make};

/// Long enough for whatever is within the bounds, on a slow machine.
const MAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// Whatever a file is, it is refused, or becomes a thumbnail of the size that was planned, not larger than it is.
pub fn pictures(data: &[u8]) {
    let mut file = Cursor::new(data);
    let Ok(picture) = look(&mut file) else { return };
    drop(is_animated(&mut file, &picture));
    let (width, height) = picture.upright();
    for method in [Method::Crop, Method::Scale] {
        let request = ThumbnailRequest { width: 20, height: 20, method };
        let size = request.answer(&picture).unwrap_or(ThumbnailSize { width: 32, height: 32, method });
        let Ok(made) = make(&mut file, &picture, size, Instant::now() + MAKE_TIMEOUT) else { continue };
        assert!(made.width <= width && made.height <= height, "larger than the picture");
        assert!(made.width <= size.width && made.height <= size.height, "larger than planned");
        let again = look(&mut Cursor::new(&made.bytes)).expect("a thumbnail is a picture");
        assert_eq!(again.upright(), (made.width, made.height));
        assert_eq!(again.format.content_type(), made.content_type);
    }
}
