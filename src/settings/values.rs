//! The text forms of values: durations, sizes, addresses, networks, keys.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::settings::options::MASKED;

/// No wait in a proxy is longer on purpose.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// No JSON body of a prompt is larger on purpose.
const LARGEST: u64 = 1 << 36;

/// Parts of the names of headers whose values are secrets.
const CREDENTIALS: [&str; 5] = ["auth", "cookie", "key", "secret", "token"];

/// Why a text is not the value it should be; reads on after the text itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("is not a duration such as 30s, 500ms, 2m, 1h or a number of seconds")]
    Duration,
    #[error("is longer than 30 days")]
    TooLong,
    #[error("must be more than zero")]
    Zero,
    #[error("is not a number from {0} to {1}")]
    Number(String, String),
    #[error("is not a whole number")]
    Whole,
    #[error("is not a number")]
    Decimal,
    #[error("is not a URL such as http://10.0.0.1:8000")]
    Url,
    #[error("is not a port or `none`")]
    PortOrNone,
    #[error("is not a number of bytes such as 268435456, 256MiB, 10MB or 64KiB")]
    Size,
    #[error("is larger than 64GiB")]
    TooLarge,
    #[error("is not an IP address or a host name")]
    Host,
    #[error("is not an IP address or a host name, and a port, such as 0.0.0.0:36367")]
    Address,
    #[error("is not a list of networks such as 10.0.0.0/8,192.168.1.7")]
    Networks,
    #[error("is no list of engines' hosts such as 10.0.0.1:8000=10.0.0.1,10.0.0.2@8: {0}")]
    EngineHosts(String),
    #[error("is not a list of header names such as x-request-id,x-correlation-id")]
    Headers,
    #[error("is not `none` or a list of header names and texts of the body such as x-session-id,body.session_id")]
    KeyPlaces,
    #[error("names a header that may carry a credential, which must not be logged")]
    Credential,
    #[error("is not `*` or a list of origins such as https://chat.example,http://localhost:3000")]
    Origins,
    #[error("is not one of true, false, yes, no, on, off, 1, 0")]
    Switch,
    #[error("is not one of {0}")]
    Choice(String),
    #[error("must be visible ASCII characters without spaces, at least one")]
    Secret,
}

/// Text that is never shown: every way to print it gives `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the header that must carry it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether somebody presented this very text, in a time that tells nothing of where it differs.
    #[must_use]
    pub fn matches(&self, presented: &[u8]) -> bool {
        let mine = self.0.as_bytes();
        let differing = mine.iter().zip(presented).fold(0, |sum, (mine, theirs)| sum | (mine ^ theirs));
        mine.len() == presented.len() && std::hint::black_box(differing) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(MASKED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(MASKED)
    }
}

/// A value and the text it is shown as.
pub(super) type Parsed<T> = Result<(T, String), Refusal>;

/// A value whose own form is the one that is shown.
pub(super) fn plain<T: fmt::Display>(value: T) -> (T, String) {
    let text = value.to_string();
    (value, text)
}

/// A value that may be unset.
pub(super) fn some<T>(parse: impl Fn(&str) -> Parsed<T>) -> impl Fn(&str) -> Parsed<Option<T>> {
    move |text| parse(text).map(|(value, shown)| (Some(value), shown))
}

pub(super) fn secret(text: &str) -> Parsed<Secret> {
    let fits_a_header = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits_a_header { Ok(plain(Secret(text.to_owned()))) } else { Err(Refusal::Secret) }
}

/// A key in the form of the header that carries it.
pub(super) fn bearer(text: &str) -> Parsed<HeaderValue> {
    let (key, shown) = secret(text)?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose())).map_err(|_| Refusal::Secret)?;
    value.set_sensitive(true);
    Ok((value, shown))
}

/// Splits `30s` into `30` and `s`.
fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

pub(super) fn time_or_zero(text: &str) -> Parsed<Duration> {
    let (number, unit) = split_unit(text);
    let scale = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(Refusal::Duration),
    };
    // Only digits and points come this far, so neither NaN nor a sign does; the conversion refuses what is left.
    let seconds = f64::from_str(number).map_err(|_| Refusal::Duration)? * scale;
    let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= LONGEST).ok_or(Refusal::TooLong)?;
    Ok((time, format!("{time:?}")))
}

pub(super) fn time(text: &str) -> Parsed<Duration> {
    time_or_zero(text).and_then(|(time, shown)| if time.is_zero() { Err(Refusal::Zero) } else { Ok((time, shown)) })
}

const SIZE_UNITS: [(&str, u64); 8] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
    ("", 1),
];

/// A number of bytes, shown in the largest unit that it is a multiple of.
pub(super) fn size(text: &str) -> Parsed<u64> {
    let (number, unit) = split_unit(text);
    let scale = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or(Refusal::Size)?.1;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::Size);
    }
    let bytes =
        u64::from_str(number).ok().and_then(|number| number.checked_mul(scale)).filter(|bytes| *bytes <= LARGEST);
    let bytes = bytes.ok_or(Refusal::TooLarge)?;
    let fits = |(_, scale): &&(&str, u64)| bytes.is_multiple_of(*scale);
    let (name, scale) = SIZE_UNITS[..3].iter().find(fits).unwrap_or(&("", 1));
    if bytes == 0 { Err(Refusal::Zero) } else { Ok((bytes, format!("{}{name}", bytes / scale))) }
}

/// The same, where none at all means something.
pub(super) fn size_or_zero(text: &str) -> Parsed<u64> {
    match size(text) {
        Err(Refusal::Zero) => Ok((0, String::from("0"))),
        other => other,
    }
}

pub(super) fn networks(text: &str) -> Parsed<Vec<IpNet>> {
    let network = |text: &str| {
        let bare = || IpAddr::from_str(text).map(IpNet::from);
        IpNet::from_str(text).map(|network| network.trunc()).or_else(|_| bare()).map_err(|_| Refusal::Networks)
    };
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let networks = parts.map(network).collect::<Result<Vec<_>, _>>()?;
    let shown = networks.iter().map(IpNet::to_string).collect::<Vec<_>>().join(",");
    // A list that was given and names nothing must not mean that everything is allowed.
    if networks.is_empty() { Err(Refusal::Networks) } else { Ok((networks, shown)) }
}

/// Names of headers whose values are logged.
pub(super) fn headers(text: &str) -> Parsed<Vec<HeaderName>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let names = parts.map(|part| HeaderName::from_str(part).map_err(|_| Refusal::Headers));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    if names.iter().any(|name| CREDENTIALS.iter().any(|part| name.as_str().contains(part))) {
        return Err(Refusal::Credential);
    }
    let shown = names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(",");
    if names.is_empty() { Err(Refusal::Headers) } else { Ok((names, shown)) }
}

/// A whole number within limits, both included.
pub(super) fn number<T: FromStr + PartialOrd + fmt::Display>(low: T, high: T) -> impl Fn(&str) -> Parsed<T> {
    move |text| {
        let signless = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = T::from_str(text).ok().filter(|number| signless && *number >= low && *number <= high);
        number.map(plain).ok_or_else(|| Refusal::Number(low.to_string(), high.to_string()))
    }
}

pub(super) fn switch(text: &str) -> Parsed<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(plain(true)),
        "0" | "false" | "no" | "off" => Ok(plain(false)),
        _ => Err(Refusal::Switch),
    }
}

/// One of several names, shown by the first that means the same.
pub(super) fn choice<T: Copy + PartialEq>(choices: &[(&'static str, T)]) -> impl Fn(&str) -> Parsed<T> {
    move |text| match choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
        Some((named, value)) => {
            let first = choices.iter().find(|(_, other)| other == value).map_or(*named, |(name, _)| *name);
            Ok((*value, first.to_owned()))
        }
        None => Err(Refusal::Choice(choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Parsed, Refusal, networks, size, switch, time, time_or_zero};

    fn value<T>(parsed: Parsed<T>) -> Result<T, Refusal> {
        parsed.map(|(value, _)| value)
    }

    #[test]
    fn values_are_read_in_every_form() {
        for (text, milliseconds) in [
            ("30s", 30_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("300", 300_000),
            ("0.5", 500),
            ("1 s", 1000),
        ] {
            assert_eq!(value(time_or_zero(text)), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "-1", "+1", "1e3", "inf", "NaN", "1.2.3", ".", "1d", "1s2", "½"] {
            assert_eq!(time_or_zero(text), Err(Refusal::Duration), "{text}");
        }
        assert_eq!(time_or_zero(&"9".repeat(400)), Err(Refusal::TooLong));
        assert_eq!(time("0.00000000001"), Err(Refusal::Zero));
        for (text, bytes) in [
            ("268435456", 268_435_456),
            ("256MiB", 268_435_456),
            ("10MB", 10_000_000),
            ("64kib", 65536),
            ("1 GiB", 1 << 30),
        ] {
            let (read, shown) = size(text).unwrap();
            assert_eq!((read, value(size(&shown))), (bytes, Ok(bytes)), "{text}");
        }
        assert_eq!(size("0KiB"), Err(Refusal::Zero));
        assert_eq!(size("99999999999999999999"), Err(Refusal::TooLarge));
        assert_eq!(size("1.5MB"), Err(Refusal::Size));
    }

    #[test]
    fn lists_and_switches_are_read_in_every_form() {
        let (_, shown) = networks("10.1.2.3/8, 192.168.1.7,,fd00::/8").unwrap();
        assert_eq!(shown, "10.0.0.0/8,192.168.1.7/32,fd00::/8");
        for (text, on) in [("1", true), ("YES", true), ("on", true), ("true", true), ("0", false), ("Off", false)] {
            assert_eq!(value(switch(text)), Ok(on), "{text}");
        }
    }
}
