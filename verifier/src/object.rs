//! Reads a struct from a JSON object in which no member is named twice.
//!
//! RFC 7515, section 4, and RFC 7519, section 4, let a parser refuse duplicate members or keep the
//! last; two parsers that choose differently see two different tokens, so this one refuses. It looks
//! at the members of the object itself, not at objects nested in values nobody reads.
//!
//! Of the members that a struct lists serde itself refuses a second one; the names of the others are
//! remembered here.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::value::CowStrDeserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};

/// A deserializer that offers objects only, and only with distinct member names.
pub(crate) struct Object<D>(pub(crate) D);

struct ObjectVisitor<V> {
    visitor: V,
    listed: &'static [&'static str],
}

struct DistinctMembers<'de, A> {
    members: A,
    listed: &'static [&'static str],
    /// How many members have been read.
    read: usize,
    /// Names that are not listed.
    seen: BTreeSet<Cow<'de, str>>,
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Object<D> {
    type Error = D::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        listed: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(ObjectVisitor { visitor, listed })
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_struct("", &[], visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for ObjectVisitor<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(DistinctMembers {
            members,
            listed: self.listed,
            read: 0,
            seen: BTreeSet::new(),
        })
    }
}

impl<A> DistinctMembers<'_, A> {
    /// Most objects have their members in the order of the list.
    fn is_listed(&self, name: &str) -> bool {
        self.listed.get(self.read) == Some(&name) || self.listed.contains(&name)
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for DistinctMembers<'de, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let Some(Name(name)) = self.members.next_key()? else {
            return Ok(None);
        };
        if !self.is_listed(&name) && !self.seen.insert(name.clone()) {
            return Err(A::Error::custom("a member is named twice"));
        }
        self.read += 1;
        seed.deserialize(CowStrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.members.next_value_seed(seed)
    }
}
