//! Lists whose length strangers choose: [`AtMost`] and [`AtMostMembers`] refuse what is more, [`First`] and [`FirstMembers`]
//! pass over what comes behind. To all of them `null` is an empty one: servers in Go write lists and maps so that have nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A list of at most so many items. One that is longer is refused before it is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtMost<T, const MOST: usize>(pub Vec<T>);

/// Such a list is a list like any other once it is read.
macro_rules! list {
    ($($name:ident)*) => {$(
        impl<T, const MOST: usize> Default for $name<T, MOST> {
            fn default() -> Self {
                Self(Vec::new())
            }
        }

        impl<T, const MOST: usize> Deref for $name<T, MOST> {
            type Target = Vec<T>;

            fn deref(&self) -> &Vec<T> {
                &self.0
            }
        }

        impl<T, const MOST: usize> DerefMut for $name<T, MOST> {
            fn deref_mut(&mut self) -> &mut Vec<T> {
                &mut self.0
            }
        }

        impl<T, const MOST: usize> IntoIterator for $name<T, MOST> {
            type Item = T;
            type IntoIter = std::vec::IntoIter<T>;

            fn into_iter(self) -> Self::IntoIter {
                self.0.into_iter()
            }
        }
    )*};
}

list! { AtMost First }

/// The first items of a list; what comes behind so many of them is passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct First<T, const MOST: usize>(pub Vec<T>);

/// The first members of an object, in their order; what comes behind so many of them is passed over. A key may come
/// twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstMembers<K, V, const MOST: usize>(pub Vec<(K, V)>);

/// An object of at most so many members. One that has more, repeated keys included, is refused before it is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtMostMembers<V, const MOST: usize>(pub BTreeMap<String, V>);

impl<K, V, const MOST: usize> Default for FirstMembers<K, V, MOST> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

struct ListVisitor<T, const MOST: usize> {
    /// Whether more than that is an error.
    strict: bool,
    of: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for ListVisitor<T, MOST> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while list.len() < MOST {
            match items.next_element()? {
                Some(item) => list.push(item),
                None => return Ok(list),
            }
        }
        while items.next_element::<IgnoredAny>()?.is_some() {
            if self.strict {
                return Err(de::Error::custom(format_args!("a list of more than {MOST}")));
            }
        }
        Ok(list)
    }

    /// Asked for so, since the library takes whatever may be `null` for something that may be missing.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> std::result::Result<Vec<T>, D::Error> {
        inner.deserialize_option(self)
    }

    fn visit_none<E: de::Error>(self) -> std::result::Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> std::result::Result<Vec<T>, D::Error> {
        inner.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for AtMost<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(inner: D) -> std::result::Result<Self, D::Error> {
        inner
            .deserialize_newtype_struct("AtMost", ListVisitor::<T, MOST> { strict: true, of: PhantomData })
            .map(Self)
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for First<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(inner: D) -> std::result::Result<Self, D::Error> {
        inner
            .deserialize_newtype_struct("First", ListVisitor::<T, MOST> { strict: false, of: PhantomData })
            .map(Self)
    }
}

impl<'de, K: Deserialize<'de>, V: Deserialize<'de>, const MOST: usize> Deserialize<'de>
    for FirstMembers<K, V, MOST>
{
    fn deserialize<D: Deserializer<'de>>(inner: D) -> std::result::Result<Self, D::Error> {
        struct FirstMembersVisitor<K, V, const MOST: usize>(PhantomData<(K, V)>);

        impl<'de, K: Deserialize<'de>, V: Deserialize<'de>, const MOST: usize> Visitor<'de>
            for FirstMembersVisitor<K, V, MOST>
        {
            type Value = Vec<(K, V)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut members: A,
            ) -> std::result::Result<Vec<(K, V)>, A::Error> {
                let mut list = Vec::new();
                while list.len() < MOST {
                    match members.next_entry()? {
                        Some(member) => list.push(member),
                        None => return Ok(list),
                    }
                }
                while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(list)
            }

            /// Asked for so, since the library takes whatever may be `null` for something that may be missing.
            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                inner: D,
            ) -> std::result::Result<Vec<(K, V)>, D::Error> {
                inner.deserialize_option(self)
            }

            fn visit_none<E: de::Error>(self) -> std::result::Result<Vec<(K, V)>, E> {
                Ok(Vec::new())
            }

            fn visit_some<D: Deserializer<'de>>(
                self,
                inner: D,
            ) -> std::result::Result<Vec<(K, V)>, D::Error> {
                // As a structure, since no node of a tree is made for its members.
                inner.deserialize_struct("FirstMembers", &[], self)
            }
        }

        inner
            .deserialize_newtype_struct("FirstMembers", FirstMembersVisitor::<K, V, MOST>(PhantomData))
            .map(Self)
    }
}

impl<'de, V: Deserialize<'de>, const MOST: usize> Deserialize<'de> for AtMostMembers<V, MOST> {
    fn deserialize<D: Deserializer<'de>>(inner: D) -> std::result::Result<Self, D::Error> {
        struct AtMostMembersVisitor<V, const MOST: usize>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>, const MOST: usize> Visitor<'de> for AtMostMembersVisitor<V, MOST> {
            type Value = BTreeMap<String, V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut members: A,
            ) -> std::result::Result<BTreeMap<String, V>, A::Error> {
                let (mut object, mut count) = (BTreeMap::new(), 0);
                while let Some((key, value)) = members.next_entry()? {
                    count += 1;
                    if count > MOST {
                        return Err(de::Error::custom(format_args!("an object of more than {MOST}")));
                    }
                    object.insert(key, value);
                }
                Ok(object)
            }

            /// Asked for so, since the library takes whatever may be `null` for something that may be missing.
            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                inner: D,
            ) -> std::result::Result<BTreeMap<String, V>, D::Error> {
                inner.deserialize_option(self)
            }

            fn visit_none<E: de::Error>(self) -> std::result::Result<BTreeMap<String, V>, E> {
                Ok(BTreeMap::new())
            }

            fn visit_some<D: Deserializer<'de>>(
                self,
                inner: D,
            ) -> std::result::Result<BTreeMap<String, V>, D::Error> {
                inner.deserialize_map(self)
            }
        }

        inner
            .deserialize_newtype_struct("AtMostMembers", AtMostMembersVisitor::<V, MOST>(PhantomData))
            .map(Self)
    }
}
