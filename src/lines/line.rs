//! A line's fields as text: byte for byte what tracing's own formatter writes, at a third of its price where nothing is to be
//! escaped or coloured. An exchange's line has twenty.

use std::fmt::{self, Debug};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, DefaultVisitor, Writer};

/// Formats fields for a reader that knows no colours; for one that does tracing's own formatter does.
#[derive(Debug, Default)]
pub struct Plain;

impl<'writer> FormatFields<'writer> for Plain {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        if writer.has_ansi_escapes() {
            return DefaultFields::new().format_fields(writer, fields);
        }
        let mut visitor = Visitor { writer, is_empty: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct Visitor<'a> {
    writer: Writer<'a>,
    is_empty: bool,
    result: fmt::Result,
}

impl Visitor<'_> {
    /// Writes a field whose name and value need no care.
    fn plain(&mut self, field: &Field, value: impl fmt::Display, quote: &str) {
        let space = if std::mem::replace(&mut self.is_empty, false) { "" } else { " " };
        for text in [space, field.name(), "=", quote] {
            self.result = self.result.and_then(|()| self.writer.write_str(text));
        }
        self.result = self.result.and_then(|()| write!(self.writer, "{value}{quote}"));
    }

    /// Has tracing's own formatter write a field.
    fn stock(&mut self, record: impl FnOnce(&mut DefaultVisitor<'_>)) {
        let mut visitor = DefaultVisitor::new(self.writer.by_ref(), std::mem::replace(&mut self.is_empty, false));
        record(&mut visitor);
        self.result = self.result.and(visitor.finish());
    }
}

/// Whether a field is written as `name=value`.
fn is_named(field: &Field) -> bool {
    field.name() != "message" && !field.name().starts_with("r#")
}

/// Whether a text is the same when it is quoted.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\')
}

impl Visit for Visitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match is_named(field) && is_plain(value) {
            true => self.plain(field, value, "\""),
            false => self.stock(|visitor| visitor.record_str(field, value)),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match is_named(field) {
            true => self.plain(field, value, ""),
            false => self.stock(|visitor| visitor.record_u64(field, value)),
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
        let span = tracing::info_span!("inside", id = 7_u64, text = "a\"b");
        span.in_scope(|| tracing::info!(within = "x"));
    }

    #[test]
    fn a_line_is_the_one_that_tracing_writes() {
        for ansi in [false, true] {
            let (ours, stock) = (Kept::default(), Kept::default());
            let (to_ours, to_stock) = (ours.clone(), stock.clone());
            let builder = || tracing_subscriber::fmt().without_time().with_ansi(ansi);
            let subscriber = builder().fmt_fields(Plain).with_writer(move || to_ours.clone()).finish();
            tracing::subscriber::with_default(subscriber, lines);
            tracing::subscriber::with_default(builder().with_writer(move || to_stock.clone()).finish(), lines);
            let (ours, stock) = (ours.0.lock().unwrap(), stock.0.lock().unwrap());
            assert_eq!(String::from_utf8_lossy(&ours), String::from_utf8_lossy(&stock));
            assert!(stock.len() > 1500, "{}", stock.len());
        }
    }
}
