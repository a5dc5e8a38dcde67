//! A line as text: byte for byte what tracing's own formatter writes, at less than half its price where nothing is to be escaped or
//! coloured. Every exchange has one, with twenty fields.

use std::cell::RefCell;
use std::fmt::{self, Debug, Write};
use std::time::UNIX_EPOCH;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::VisitOutput;
use tracing_subscriber::fmt::format::{DefaultVisitor, Format, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Bytes of most lines.
const USUAL: usize = 640;

thread_local! {
    /// A second since 1970, and its time as text without its fraction.
    static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
}

/// Formats lines for a reader that knows no colours; for one that does, and inside spans, tracing's own formatter does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if writer.has_ansi_escapes() || context.event_scope().is_some() {
            return Format::default().format_event(context, writer, event);
        }
        let mut text = String::with_capacity(USUAL);
        push_time(&mut text)?;
        let about = event.metadata();
        text.push_str(level(*about.level()));
        text.push_str(about.target());
        text.push_str(": ");
        let mut visitor = Visitor { text, is_empty: true, result: Ok(()) };
        event.record(&mut visitor);
        let Visitor { mut text, result, .. } = visitor;
        result?;
        text.push('\n');
        writer.write_str(&text)
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::TRACE => " TRACE ",
        Level::DEBUG => " DEBUG ",
        Level::INFO => "  INFO ",
        Level::WARN => "  WARN ",
        Level::ERROR => " ERROR ",
    }
}

/// The time as tracing writes it, in UTC to the microsecond. The text of a second is made once.
fn push_time(text: &mut String) -> fmt::Result {
    let now = || std::time::SystemTime::now().duration_since(UNIX_EPOCH);
    SECOND.with_borrow_mut(|(second, begin)| {
        loop {
            // A clock that stands before 1970.
            let Ok(time) = now() else { return SystemTime.format_time(&mut Writer::new(text)) };
            if time.as_secs() == *second {
                text.push_str(begin);
                return write!(text, "{:06}Z", time.subsec_micros());
            }
            begin.clear();
            SystemTime.format_time(&mut Writer::new(begin))?;
            begin.truncate(begin.rfind('.').map_or(0, |dot| dot + 1));
            // The second may have ended meanwhile.
            *second = now()
                .map_or(u64::MAX, |after| if after.as_secs() == time.as_secs() { after.as_secs() } else { u64::MAX });
        }
    })
}

struct Visitor {
    text: String,
    is_empty: bool,
    result: fmt::Result,
}

impl Visitor {
    /// Begins a field whose name needs no care.
    fn begin(&mut self, field: &Field) {
        if !std::mem::replace(&mut self.is_empty, false) {
            self.text.push(' ');
        }
        self.text.push_str(field.name());
        self.text.push('=');
    }

    /// Has tracing's own formatter write a field.
    fn stock(&mut self, record: impl FnOnce(&mut DefaultVisitor<'_>)) {
        let is_empty = std::mem::replace(&mut self.is_empty, false);
        let mut visitor = DefaultVisitor::new(Writer::new(&mut self.text), is_empty);
        record(&mut visitor);
        self.result = self.result.and(visitor.finish());
    }
}

/// Whether a field is written as `name=value`.
fn is_named(field: &Field) -> bool {
    field.name() != "message" && !field.name().starts_with("r#")
}

/// Whether a text is the same in JSON and in the log but for the quotes around it. Every byte is looked at, so that many are at once.
pub(crate) fn is_plain(text: &str) -> bool {
    text.bytes().fold(true, |is_plain, byte| is_plain & matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\'))
}

/// How many tenths a number is, if it is that many exactly as far as numbers tell: times are rounded to them.
fn tenths(value: f64) -> Option<u32> {
    let tenths = (value * 10.0).round();
    let is_exact = (0.0..1e9).contains(&tenths) && value.is_sign_positive() && tenths / 10.0 == value;
    is_exact.then_some(tenths as u32)
}

impl Visit for Visitor {
    fn record_str(&mut self, field: &Field, value: &str) {
        if is_named(field) && is_plain(value) {
            self.begin(field);
            self.text.push('"');
            self.text.push_str(value);
            self.text.push('"');
        } else {
            self.stock(|visitor| visitor.record_str(field, value));
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if is_named(field) {
            self.begin(field);
            self.text.push_str(itoa::Buffer::new().format(value));
        } else {
            self.stock(|visitor| visitor.record_u64(field, value));
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if is_named(field) {
            self.begin(field);
            match tenths(value) {
                Some(tenths) => {
                    self.text.push_str(itoa::Buffer::new().format(tenths / 10));
                    self.text.push('.');
                    self.text.push(char::from(b'0' + (tenths % 10) as u8));
                }
                None => self.result = self.result.and(write!(self.text, "{value:?}")),
            }
        } else {
            self.stock(|visitor| visitor.record_f64(field, value));
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.stock(|visitor| visitor.record_error(field, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.stock(|visitor| visitor.record_debug(field, value));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Kept {
        /// What was written, less the time at each line's begin.
        fn untimed(&self) -> String {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            let is_time =
                |word: &str| word.contains("Z") && word.contains("T") && word.contains(':') && word.len() >= 27;
            text.split_inclusive(' ').filter(|word| !is_time(word)).collect()
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("outer \"{0}\"")]
    struct Outer(&'static str, #[source] std::fmt::Error);

    fn lines() {
        let (some, none) = (Some("a"), None::<&str>);
        tracing::info!(target: "exchange", route = "chat", status = 200_u16, some, none, ms = Some(12.5), bytes = 0_u64);
        tracing::info!(
            signed = -1,
            flag = true,
            big = u64::MAX,
            huge = i128::MIN,
            float = 1e300,
            "words\x1b[31m {}",
            "\"x\""
        );
        for text in
            ["", "a b", "quote\"", "back\\slash", "tab\t", "line\n", "\x1b[31m", "é", "\u{7f}", "'", "~", "\u{200b}"]
        {
            tracing::warn!(text, shown = %text, debugged = ?text, message = text);
        }
        let error = Outer("e", std::fmt::Error);
        tracing::error!(error = &error as &dyn std::error::Error, r#type = "x", r#fn = 3_u64);
        tracing::error!(%error, "only words");
        tracing::error!("no field");
        tracing::debug!(nothing = f64::NAN, least = f64::MIN_POSITIVE, r#in = 1.5, whole = 2.0);
        tracing::debug!(
            zero = 0.0,
            below = -0.0,
            minus = -2.5,
            thirds = 1.0 / 3.0,
            twelfth = 0.05,
            most = 99_999_999.9
        );
        tracing::debug!(
            more = 100_000_000.1,
            big = 4_294_967_296.5,
            near = 0.1 + 0.2,
            tiny = 1e-7,
            one = 1e9,
            nan = -f64::NAN
        );
        tracing::trace!(yes = true);
        let span = tracing::info_span!("inside", id = 7_u64, text = "a\"b");
        span.in_scope(|| tracing::info!(within = "x"));
    }

    #[test]
    fn a_line_is_the_one_that_tracing_writes() {
        for ansi in [false, true] {
            let (ours, stock) = (Kept::default(), Kept::default());
            let (to_ours, to_stock) = (ours.clone(), stock.clone());
            let builder = || tracing_subscriber::fmt().with_max_level(Level::TRACE).with_ansi(ansi);
            let subscriber = builder().event_format(Plain).with_writer(move || to_ours.clone()).finish();
            tracing::subscriber::with_default(subscriber, lines);
            tracing::subscriber::with_default(builder().with_writer(move || to_stock.clone()).finish(), lines);
            assert_eq!(ours.untimed(), stock.untimed());
            assert!(ours.untimed().len() > 1500);
        }
    }

    #[test]
    fn a_time_is_between_those_that_tracing_writes() {
        let stock = || {
            let mut text = String::new();
            SystemTime.format_time(&mut Writer::new(&mut text)).unwrap();
            text
        };
        let (began, mut count) = (std::time::Instant::now(), 0);
        // Over the ends of two seconds.
        while began.elapsed() < std::time::Duration::from_millis(2100) {
            let (before, mut ours) = (stock(), String::new());
            push_time(&mut ours).unwrap();
            let after = stock();
            assert!(before <= ours && ours <= after && ours.len() == after.len(), "{before} {ours} {after}");
            count += 1;
        }
        assert!(count > 100, "{count}");
    }
}
