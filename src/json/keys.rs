//! Keys of a JSON text and what follows them, found without a parse: most of an answer is of no interest, and can be megabytes of
//! block ids. A quote inside a string is escaped, so a key between quotes with a colon behind it is no part of a string. At which depth
//! it stands is not known: this is for texts without objects that anybody else may have written.

use std::sync::LazyLock;

use memchr::memmem::Finder;

/// A key to look for.
pub struct Key(LazyLock<Finder<'static>>);

impl Key {
    /// One that is given with its quotes, ready from its first use.
    pub const fn new(quoted: fn() -> Finder<'static>) -> Key {
        Key(LazyLock::new(quoted))
    }

    /// The texts from its values on.
    fn values<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let length = self.0.needle().len();
        let value = move |at: usize| text[at + length..].trim_ascii_start().strip_prefix(b":");
        self.0.find_iter(text).filter_map(value).map(<[u8]>::trim_ascii_start)
    }

    /// The text from the last of its values on that is an object.
    pub fn object<'a>(&'a self, text: &'a [u8]) -> Option<&'a [u8]> {
        self.values(text).filter(|value| value.starts_with(b"{")).last()
    }

    /// Its first value, if that is a whole number.
    pub fn number(&self, text: &[u8]) -> Option<u64> {
        let value = self.values(text).next()?;
        let end = value.iter().position(|byte| !byte.is_ascii_digit())?;
        let (digits, rest) = value.split_at(end);
        let ends = matches!(rest.trim_ascii_start().first(), Some(b',' | b'}'));
        std::str::from_utf8(digits).ok().filter(|_| ends)?.parse().ok()
    }

    /// Whether its first value is `null`.
    pub fn is_null(&self, text: &[u8]) -> bool {
        self.values(text).next().is_some_and(|value| value.starts_with(b"null"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static KEY: Key = Key::new(|| Finder::new("\"key\""));

    #[test]
    fn a_key_is_no_part_of_a_string() {
        for (text, number) in [
            (r#"{"key":7}"#, Some(7)),
            (r#"{"a":{"key" :  18446744073709551615 , "key": 2}}"#, Some(u64::MAX)),
            (r#"{"a":"\"key\":7"}"#, None),
            (r#"["key", 7]"#, None),
            (r#"{"monkey":7,"keys":7}"#, None),
        ] {
            assert_eq!(KEY.number(text.as_bytes()), number, "{text}");
        }
        for value in ["18446744073709551616", "-1", "1.5", "1e3", "\"7\"", "null", "{}", "7", ""] {
            assert_eq!(KEY.number(format!("{{\"key\":{value}").as_bytes()), None, "{value}");
        }
    }

    #[test]
    fn an_object_is_the_last_one() {
        let rest = |text: &'static str| KEY.object(text.as_bytes()).map(|rest| std::str::from_utf8(rest).unwrap());
        assert_eq!(rest(r#"{"key":{"a":1},"key": {"b":2}}"#), Some(r#"{"b":2}}"#));
        assert_eq!(rest(r#"{"key":{"a":1},"key":null}"#), Some(r#"{"a":1},"key":null}"#));
        assert_eq!(rest(r#"{"key":null,"a":"{\"key\":{}}"}"#), None);
    }

    #[test]
    fn null_is_told_from_what_is_not_there() {
        for (text, is_null) in
            [("{\"key\": null}", true), ("{\"key\":{}}", false), ("{\"key\":\"null\"}", false), ("{}", false)]
        {
            assert_eq!(KEY.is_null(text.as_bytes()), is_null, "{text}");
        }
    }
}
