//! Which of two copies of a room key a backup keeps (client-server API, "Server-side key backups").

use serde::Serialize;

use crate::protocol::json::ObjectText;

/// A room key as a backup has it (`KeyBackupData`).
#[derive(Debug, Clone, Serialize)]
pub struct KeyBackupData {
    /// The index of the first message that the key can decrypt.
    pub first_message_index: i64,
    /// How often the key was forwarded between devices.
    pub forwarded_count: i64,
    /// Whether the device that it is from was verified by the one that backed it up.
    pub is_verified: bool,
    /// The key itself, encrypted.
    pub session_data: ObjectText,
}

/// What a backup compares of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyQuality {
    /// As in [`KeyBackupData`].
    pub first_message_index: i64,
    /// As in [`KeyBackupData`].
    pub forwarded_count: i64,
    /// As in [`KeyBackupData`].
    pub is_verified: bool,
}

impl KeyBackupData {
    /// What is compared of it.
    pub fn quality(&self) -> KeyQuality {
        let Self { first_message_index, forwarded_count, is_verified, .. } = *self;
        KeyQuality { first_message_index, forwarded_count, is_verified }
    }
}

impl KeyQuality {
    /// Whether a key takes the place of one that is there: "if the keys have different values for `is_verified`, then it
    /// will keep the key that has `is_verified` set to `true`; if they have the same values for `is_verified`, then it
    /// will keep the key with a lower `first_message_index`; and finally, if `is_verified` and `first_message_index` are
    /// equal, then it will keep the key with a lower `forwarded_count`." (Synapse looks at the two numbers whether or not
    /// one key is verified and the other is not.)
    pub fn replaces(self, other: Self) -> bool {
        let rank = |key: Self| (!key.is_verified, key.first_message_index, key.forwarded_count);
        rank(self) < rank(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verified_key_beats_all_others_then_the_lower_index_then_the_lower_count() {
        let key = |is_verified, first_message_index, forwarded_count| KeyQuality {
            first_message_index,
            forwarded_count,
            is_verified,
        };
        // Best first: each replaces those that follow, and none itself or one before it.
        let ranked = [
            key(true, 0, 0),
            key(true, 0, 1),
            key(true, 1, 0),
            key(true, 1, 9),
            key(true, 900, 0),
            key(false, 0, 0),
            key(false, 0, 5),
            key(false, 3, 0),
        ];
        for (a, new) in ranked.iter().enumerate() {
            for (b, old) in ranked.iter().enumerate() {
                assert_eq!(new.replaces(*old), a < b, "{new:?} in place of {old:?}");
            }
        }
    }
}
