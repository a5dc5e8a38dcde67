//! The keys and values of one message, read under limits.

use std::fmt;
use std::io::Cursor;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::rejection::{Echo, MAX_KEYS, MAX_MESSAGE_BYTES, NO_PORT, Rejection, invalid};

/// The map itself, and something inside an unknown key.
const MAX_DEPTH: usize = 16;
/// The largest data-parallel or tensor-parallel size.
const MAX_SIZE: u64 = 1024;

/// A value, as far as any wording needs it.
#[derive(Clone, Debug)]
pub(super) enum Scalar {
    Text(String),
    Number(u64),
    Other,
}

/// The keys of a message that are text, in order; others cannot be required by any wording.
pub(super) struct Fields(pub(super) Vec<(String, Scalar)>);

impl Fields {
    pub(super) fn read(payload: &[u8]) -> Result<Fields, Rejection> {
        if payload.len() > MAX_MESSAGE_BYTES {
            return Err(Rejection::TooLarge(payload.len()));
        }
        // The library takes an array for a map, with values by position.
        match payload.first() {
            None => return Err(Rejection::NotMsgpack),
            Some(0x80..=0x8f | 0xde | 0xdf) => {}
            Some(_) => return Err(Rejection::NotAMap),
        }
        let mut deserializer = rmp_serde::Deserializer::new(Cursor::new(payload));
        deserializer.set_max_depth(MAX_DEPTH);
        let entries = Entries::deserialize(&mut deserializer).map_err(|_| Rejection::NotMsgpack)?;
        if deserializer.position() != payload.len() as u64 {
            return Err(Rejection::Trailing);
        }
        if entries.count > MAX_KEYS {
            return Err(Rejection::TooManyKeys);
        }
        let fields = entries.fields;
        for (position, (key, _)) in fields.iter().enumerate() {
            if fields[..position].iter().any(|(earlier, _)| earlier == key) {
                return Err(Rejection::Duplicate(Echo::new(key)));
            }
        }
        Ok(Fields(fields))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Scalar> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    pub(super) fn text(&self, name: &'static str) -> Result<&str, Rejection> {
        match self.get(name).ok_or(Rejection::Missing(name))? {
            Scalar::Text(text) => Ok(text),
            Scalar::Number(number) => Err(invalid(name, "not text", &number.to_string())),
            Scalar::Other => Err(invalid(name, "not text", "another type")),
        }
    }

    fn number(&self, name: &'static str, want: &'static str) -> Result<u64, Rejection> {
        match self.get(name).ok_or(Rejection::Missing(name))? {
            Scalar::Number(number) => Ok(*number),
            Scalar::Text(text) => {
                let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                let number = digits.then(|| text.parse().ok()).flatten();
                number.ok_or_else(|| invalid(name, want, text))
            }
            Scalar::Other => Err(invalid(name, want, "another type")),
        }
    }

    pub(super) fn port(&self, name: &'static str) -> Result<u16, Rejection> {
        let number = self.number(name, NO_PORT)?;
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        port.ok_or_else(|| invalid(name, NO_PORT, &number.to_string()))
    }

    pub(super) fn size(&self, name: &'static str) -> Result<u32, Rejection> {
        let want = "not a number between 1 and 1024";
        let number = self.number(name, want)?;
        let size = u32::try_from(number).ok().filter(|_| (1..=MAX_SIZE).contains(&number));
        size.ok_or_else(|| invalid(name, want, &number.to_string()))
    }
}

struct Entries {
    fields: Vec<(String, Scalar)>,
    count: usize,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;

        impl<'de> Visitor<'de> for Map {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Entries, M::Error> {
                let (mut fields, mut count) = (Vec::new(), 0);
                while let Some((key, value)) = map.next_entry::<Scalar, Scalar>()? {
                    count += 1;
                    if let (Scalar::Text(key), true) = (key, count <= MAX_KEYS) {
                        fields.push((key, value));
                    }
                }
                Ok(Entries { fields, count })
            }
        }

        deserializer.deserialize_map(Map)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyScalar)
    }
}

/// Takes whatever stands there; only text and whole numbers keep their value.
struct AnyScalar;

impl<'de> Visitor<'de> for AnyScalar {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(text.to_owned()))
    }

    // Some encoders write text as binary; it is text if it reads as such.
    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Scalar, E> {
        Ok(std::str::from_utf8(bytes).map_or(Scalar::Other, |text| Scalar::Text(text.to_owned())))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Scalar, E> {
        Ok(Scalar::Number(number))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Scalar, E> {
        Ok(u64::try_from(number).map_or(Scalar::Other, Scalar::Number))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Scalar, E> {
        Ok(Scalar::Other)
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Scalar, E> {
        Ok(Scalar::Other)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Scalar, E> {
        Ok(Scalar::Other)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Scalar, S::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Scalar, M::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, extension: D) -> Result<Scalar, D::Error> {
        IgnoredAny::deserialize(extension).map(|_| Scalar::Other)
    }
}
