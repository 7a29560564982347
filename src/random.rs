//! Randomness from the operating system, as the strings that the protocol wants.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// That many random bytes.
///
/// # Panics
/// If the operating system has no randomness to give, which leaves nothing safe to do.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    getrandom::fill(&mut out).expect("the operating system gives randomness");
    out
}

/// 192 random bits as 32 URL-safe characters: access tokens, transaction ids, nonces.
pub fn token() -> String {
    URL_SAFE_NO_PAD.encode(bytes::<24>())
}

/// That many random letters `a` to `z` or `A` to `Z`: opaque room ids, device ids, key versions.
pub fn letters(count: usize) -> String {
    const ALPHABET: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let mut out = String::with_capacity(count);
    while out.len() < count {
        for byte in bytes::<32>() {
            // 208 is the largest multiple of 52 in a byte: above it the letters would not be equally likely.
            if byte < 208 && out.len() < count {
                out.push(char::from(ALPHABET[usize::from(byte % 52)]));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_strings_have_the_asked_length_and_do_not_repeat() {
        assert_eq!(token().len(), 32);
        assert_eq!(letters(18).len(), 18);
        assert_ne!(token(), token());
    }
}
