//! The text forms of values: durations, sizes, addresses, networks, keys.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use crate::settings::options::MASKED;

/// No wait in a proxy is longer on purpose.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// No JSON body of a prompt is larger on purpose.
const LARGEST: usize = 1 << 36;

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

pub(super) fn secret(text: &str) -> Result<Secret, Refusal> {
    let fits_a_header = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits_a_header { Ok(Secret(text.to_owned())) } else { Err(Refusal::Secret) }
}

/// Splits `30s` into `30` and `s`.
fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

pub(super) fn duration(text: &str) -> Result<Duration, Refusal> {
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
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| Refusal::TooLong)?;
    if duration > LONGEST { Err(Refusal::TooLong) } else { Ok(duration) }
}

pub(super) fn positive_duration(text: &str) -> Result<Duration, Refusal> {
    let duration = duration(text)?;
    if duration.is_zero() { Err(Refusal::Zero) } else { Ok(duration) }
}

pub(super) fn show_duration(duration: &Duration) -> String {
    format!("{duration:?}")
}

const SIZE_UNITS: [(&str, usize); 8] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
    ("", 1),
];

pub(super) fn size(text: &str) -> Result<usize, Refusal> {
    let (number, unit) = split_unit(text);
    let scale = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or(Refusal::Size)?.1;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::Size);
    }
    match usize::from_str(number).ok().and_then(|number| number.checked_mul(scale)) {
        Some(0) => Err(Refusal::Zero),
        Some(bytes) if bytes <= LARGEST => Ok(bytes),
        _ => Err(Refusal::TooLarge),
    }
}

pub(super) fn show_size(bytes: &usize) -> String {
    let fits = |(_, scale): &&(&str, usize)| *bytes >= *scale && bytes.is_multiple_of(*scale);
    let (name, scale) = SIZE_UNITS[..3].iter().find(fits).unwrap_or(&("", 1));
    format!("{}{name}", bytes / scale)
}

pub(super) fn networks(text: &str) -> Result<Vec<IpNet>, Refusal> {
    let network = |text: &str| {
        let bare = || IpAddr::from_str(text).map(IpNet::from);
        IpNet::from_str(text).map(|network| network.trunc()).or_else(|_| bare()).map_err(|_| Refusal::Networks)
    };
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let networks = parts.map(network).collect::<Result<Vec<_>, _>>()?;
    // A list that was given and names nothing must not mean that everything is allowed.
    if networks.is_empty() { Err(Refusal::Networks) } else { Ok(networks) }
}

pub(super) fn show_networks(networks: &[IpNet]) -> String {
    networks.iter().map(IpNet::to_string).collect::<Vec<_>>().join(",")
}

pub(super) fn number<T: FromStr + PartialOrd + fmt::Display>(text: &str, low: T, high: T) -> Result<T, Refusal> {
    let signless = text.bytes().all(|byte| byte.is_ascii_digit());
    match T::from_str(text) {
        Ok(number) if signless && number >= low && number <= high => Ok(number),
        _ => Err(Refusal::Number(low.to_string(), high.to_string())),
    }
}

pub(super) fn switch(text: &str) -> Result<bool, Refusal> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(Refusal::Switch),
    }
}

pub(super) fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, Refusal> {
    let named = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    let names = || choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    named.map(|(_, value)| *value).ok_or_else(|| Refusal::Choice(names()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Refusal, duration, networks, positive_duration, show_networks, show_size, size, switch};

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
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "-1", "+1", "1e3", "inf", "NaN", "1.2.3", ".", "1d", "1s2", "½"] {
            assert_eq!(duration(text), Err(Refusal::Duration), "{text}");
        }
        assert_eq!(duration(&"9".repeat(400)), Err(Refusal::TooLong));
        assert_eq!(positive_duration("0.00000000001"), Err(Refusal::Zero));
        for (text, bytes) in [
            ("268435456", 268_435_456),
            ("256MiB", 268_435_456),
            ("10MB", 10_000_000),
            ("64kib", 65536),
            ("1 GiB", 1 << 30),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
            assert_eq!(size(&show_size(&bytes)), Ok(bytes), "{text}");
        }
        assert_eq!(size("0KiB"), Err(Refusal::Zero));
        assert_eq!(size("99999999999999999999"), Err(Refusal::TooLarge));
        assert_eq!(size("1.5MB"), Err(Refusal::Size));
    }

    #[test]
    fn lists_and_switches_are_read_in_every_form() {
        let read = networks("10.1.2.3/8, 192.168.1.7,,fd00::/8").unwrap();
        assert_eq!(show_networks(&read), "10.0.0.0/8,192.168.1.7/32,fd00::/8");
        for (text, value) in [("1", true), ("YES", true), ("on", true), ("true", true), ("0", false), ("Off", false)] {
            assert_eq!(switch(text), Ok(value), "{text}");
        }
    }
}
