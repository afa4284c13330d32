//! One log record becomes one line, whatever the record holds.
//!
//! Text lines read `2026-11-21T09:12:46.123Z [INFO] request: message key=value`; JSON lines hold
//! `time`, `level`, `target`, `message` and one field for each key. Control characters are escaped,
//! so that no request can forge a line. Knows neither where lines go nor which are wanted.

use log::kv::{Error, Key, Value, VisitSource, VisitValue};
use log::{LevelFilter, Log, Record};
use serde::ser::{Serialize, SerializeMap, Serializer};
use simplelog::{ConfigBuilder, WriteLogger};
use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::thread::LocalKey;
use std::time::{SystemTime, UNIX_EPOCH};

/// The longest text of a line, in bytes; what is beyond it is cut off.
const LONGEST: usize = 8 * 1024;

/// Takes finished lines.
pub type Sink = Box<dyn Fn(&[u8]) + Send + Sync>;

thread_local! {
    /// Reused from line to line, so that logging allocates nothing.
    static TEXT: Cell<String> = const { Cell::new(String::new()) };
    static JSON: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Formats lines for people.
pub struct Text(Box<WriteLogger<Line>>);

impl Text {
    /// Gives each line to `sink`.
    pub fn new(sink: Sink) -> Text {
        // What comes before the message is written here, at a third of the cost.
        let config = ConfigBuilder::new()
            .set_time_level(LevelFilter::Off)
            .set_max_level(LevelFilter::Off)
            .set_thread_level(LevelFilter::Off)
            .set_location_level(LevelFilter::Off)
            .set_target_level(LevelFilter::Off)
            .build();
        let line = Line { bytes: Vec::new(), stamp: Stamp::default(), sink };
        Text(WriteLogger::new(LevelFilter::Trace, config, line))
    }

    /// Formats one record. The message is made before the logger takes its lock, because it runs
    /// code of whatever types it is made of.
    pub fn log(&self, record: &Record<'_>) {
        with_buffer(&TEXT, |text: &mut String| {
            text.clear();
            for piece in ["[", record.level().as_str(), "] ", short(record.target()), ": "] {
                text.push_str(piece);
            }
            let mut message = Escaped(Bounded(text));
            // The one possible error ends a message that is too long.
            let _ = message.write_fmt(*record.args());
            let _ = record.key_values().visit(&mut message);
            self.0.log(&record.to_builder().args(format_args!("{text}")).build());
        });
    }
}

/// Formats one JSON object a line.
pub struct Json(Sink);

impl Json {
    /// Gives each line to `sink`.
    pub fn new(sink: Sink) -> Json {
        Json(sink)
    }

    /// Formats one record.
    pub fn log(&self, record: &Record<'_>) {
        with_buffer(&JSON, |line: &mut Vec<u8>| {
            line.clear();
            if serde_json::to_writer(&mut *line, &Object(record)).is_ok() {
                line.push(b'\n');
                (self.0)(line);
            }
        });
    }
}

/// Lends the thread's buffer. A message that logs while it is made finds an empty one.
fn with_buffer<T: Default, R>(buffer: &'static LocalKey<Cell<T>>, work: impl FnOnce(&mut T) -> R) -> R {
    let mut lent = buffer.try_with(Cell::take).unwrap_or_default();
    let result = work(&mut lent);
    // Nothing is kept where the thread is ending.
    let _ = buffer.try_with(|buffer| buffer.set(lent));
    result
}

/// The room's name alone, for what this program logs.
fn short(target: &str) -> &str {
    match target.strip_prefix("sync_server::") {
        Some(module) => module.split(':').next().unwrap_or(module),
        None => target,
    }
}

/// The time as lines show it, made once for all those of one millisecond.
#[derive(Default)]
struct Stamp {
    millis: u128,
    text: String,
}

impl Stamp {
    fn now(&mut self) -> &str {
        let now = SystemTime::now();
        let millis = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        if self.text.is_empty() || millis != self.millis {
            self.millis = millis;
            self.text.clear();
            // The one possible error is a year of five digits.
            let _ = write!(self.text, "{}", humantime::format_rfc3339_millis(now));
        }
        &self.text
    }
}

/// Collects what the text logger writes piece by piece.
struct Line {
    bytes: Vec<u8>,
    stamp: Stamp,
    sink: Sink,
}

impl Write for Line {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.bytes.is_empty() {
            self.bytes.extend_from_slice(self.stamp.now().as_bytes());
            self.bytes.push(b' ');
        }
        self.bytes.extend_from_slice(piece);
        if piece.ends_with(b"\n") {
            (self.sink)(&self.bytes);
            self.bytes.clear();
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Text of bounded length.
struct Bounded<'a>(&'a mut String);

impl fmt::Write for Bounded<'_> {
    /// Fails once the text is full, which ends the formatting.
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        if self.0.len() + piece.len() <= LONGEST {
            self.0.push_str(piece);
            return Ok(());
        }
        let fits = piece.floor_char_boundary(LONGEST.saturating_sub(self.0.len()));
        self.0.push_str(&piece[..fits]);
        self.0.push('…');
        Err(fmt::Error)
    }
}

/// Text of bounded length in which no character is more than a character.
struct Escaped<'a>(Bounded<'a>);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        if all(piece, |byte| matches!(byte, b' '..=b'~')) {
            return self.0.write_str(piece);
        }
        for char in piece.chars() {
            if is_deceptive(char) {
                write!(self.0, "{}", char.escape_default())?;
            } else {
                self.0.write_char(char)?;
            }
        }
        Ok(())
    }
}

/// Characters that end a line, drive a terminal, or change the order in which a line is shown.
fn is_deceptive(char: char) -> bool {
    char.is_control() || matches!(char, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl Escaped<'_> {
    /// A value, in quotes where it could otherwise be taken for several.
    fn value(&mut self, value: &str) -> fmt::Result {
        if is_plain(value) {
            return self.0.write_str(value);
        }
        self.write_str("\"")?;
        for part in value.split_inclusive(['"', '\\']) {
            let text = part.trim_end_matches(['"', '\\']);
            self.write_str(text)?;
            if let Some(special) = part.get(text.len()..).filter(|special| !special.is_empty()) {
                write!(self, "\\{special}")?;
            }
        }
        self.write_str("\"")
    }

    /// What a value says of itself. Most values are plain, and are written just once.
    fn display(&mut self, value: &Value) -> fmt::Result {
        let Escaped(Bounded(text)) = self;
        let start = text.len();
        let written = write!(Bounded(text), "{value}");
        if is_plain(&text[start..]) {
            return written;
        }
        text.truncate(start);
        self.value(&value.to_string())
    }
}

/// Whether nobody can take it for several values.
fn is_plain(value: &str) -> bool {
    !value.is_empty() && all(value, |byte| matches!(byte, b'!'..=b'~') & !matches!(byte, b'"' | b'=' | b'\\'))
}

/// Whether all bytes are like this. Looks at each even after one that is not, which lets the compiler look
/// at many at once.
fn all(text: &str, is_so: impl Fn(u8) -> bool) -> bool {
    text.bytes().fold(true, |all, byte| all & is_so(byte))
}

impl<'kvs> VisitSource<'kvs> for Escaped<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let Escaped(Bounded(text)) = self;
        // Keys are this program's own, and short.
        text.push(' ');
        text.push_str(key.as_str());
        text.push('=');
        value.visit(self)
    }
}

impl VisitValue<'_> for &mut Escaped<'_> {
    fn visit_any(&mut self, value: Value) -> Result<(), Error> {
        Ok(self.display(&value)?)
    }

    fn visit_str(&mut self, value: &str) -> Result<(), Error> {
        Ok(self.value(value)?)
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), Error> {
        Ok(self.0.write_str(itoa::Buffer::new().format(value))?)
    }
}

/// A record as a JSON object. Numbers and truth values stay what they are.
struct Object<'a>(&'a Record<'a>);

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let record = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("time", &Shown(humantime::format_rfc3339_millis(SystemTime::now())))?;
        map.serialize_entry("level", record.level().as_str())?;
        map.serialize_entry("target", short(record.target()))?;
        map.serialize_entry("message", &Shown(record.args()))?;
        let _ = record.key_values().visit(&mut Fields(&mut map));
        map.end()
    }
}

/// What has a `Display`, as a JSON string of bounded length.
struct Shown<T>(T);

impl<T: fmt::Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        with_buffer(&TEXT, |text: &mut String| {
            text.clear();
            let _ = write!(Bounded(text), "{}", self.0);
            serializer.serialize_str(text)
        })
    }
}

struct Fields<'a, M>(&'a mut M);

impl<'kvs, M: SerializeMap> VisitSource<'kvs> for Fields<'_, M> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        value.visit(Field { map: self.0, key: key.as_str() })
    }
}

struct Field<'a, M> {
    map: &'a mut M,
    key: &'a str,
}

impl<M: SerializeMap> Field<'_, M> {
    fn set(&mut self, value: impl Serialize) -> Result<(), Error> {
        self.map.serialize_entry(self.key, &value).map_err(|_| Error::msg("not serializable"))
    }
}

impl<M: SerializeMap> VisitValue<'_> for Field<'_, M> {
    fn visit_any(&mut self, value: Value) -> Result<(), Error> {
        self.set(Shown(value))
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), Error> {
        self.set(value)
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), Error> {
        self.set(value)
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), Error> {
        self.set(value)
    }

    fn visit_null(&mut self) -> Result<(), Error> {
        self.set(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Level;
    use std::sync::mpsc;

    /// What one record with one key becomes, without the time at its start.
    fn text(message: &str, value: &str) -> String {
        let (sender, lines) = mpsc::channel();
        let text = Text::new(Box::new(move |line| sender.send(line.to_vec()).expect("a receiver")));
        log(message, value, |record| text.log(record));
        let line = String::from_utf8(lines.recv().expect("a line")).expect("UTF-8");
        let (time, rest) = line.split_once(' ').expect("a time");
        humantime::parse_rfc3339(time).expect("a time as RFC 3339 has it");
        rest.to_owned()
    }

    fn json(message: &str, value: &str) -> serde_json::Value {
        let (sender, lines) = mpsc::channel();
        let json = Json::new(Box::new(move |line| sender.send(line.to_vec()).expect("a receiver")));
        log(message, value, |record| json.log(record));
        let line = lines.recv().expect("a line");
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        serde_json::from_slice(&line).expect("JSON")
    }

    fn log(message: &str, value: &str, log: impl Fn(&Record<'_>)) {
        let fields: &[(&str, Value)] = &[("key", value.into()), ("bytes", 7u64.into()), ("yes", true.into())];
        let mut record = Record::builder();
        record.level(Level::Info).target("sync_server::http::wire").key_values(&fields);
        log(&record.args(format_args!("{message}")).build());
    }

    #[test]
    fn a_text_line_has_level_room_message_and_fields() {
        assert_eq!(text("hello", "value"), "[INFO] http: hello key=value bytes=7 yes=true\n");
    }

    #[test]
    fn values_that_could_be_taken_for_several_are_quoted() {
        let line = |value| text("m", value).split_once("key=").expect("a key").1.to_owned();
        assert_eq!(line("a b"), "\"a b\" bytes=7 yes=true\n");
        assert_eq!(line("a=b"), "\"a=b\" bytes=7 yes=true\n");
        assert_eq!(line(""), "\"\" bytes=7 yes=true\n");
        assert_eq!(line(r#"a" x="y"#), "\"a\\\" x=\\\"y\" bytes=7 yes=true\n");
        assert_eq!(line(r"a\"), "\"a\\\\\" bytes=7 yes=true\n");
    }

    #[test]
    fn nothing_in_a_message_or_value_ends_or_disguises_a_line() {
        let line = text("a\nb\r\x1b[1m\u{85}\u{2028}\u{202e}é", "x\ny");
        assert_eq!(
            line,
            "[INFO] http: a\\nb\\r\\u{1b}[1m\\u{85}\\u{2028}\\u{202e}é key=\"x\\ny\" bytes=7 yes=true\n"
        );
    }

    #[test]
    fn a_json_line_has_the_same_with_types() {
        let line = json("he said \"no\"\n", "a b");
        assert_eq!(line["message"], "he said \"no\"\n");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["target"], "http");
        assert_eq!(line["key"], "a b");
        assert_eq!(line["bytes"], 7);
        assert_eq!(line["yes"], true);
        humantime::parse_rfc3339(line["time"].as_str().expect("a string")).expect("a time");
    }

    #[test]
    fn a_line_is_cut_off_at_a_character() {
        let long = "é".repeat(LONGEST);
        assert!(text(&long, "lost").len() < LONGEST + 100);
        let line = json(&long, &long);
        assert!(line["message"].as_str().expect("a string").ends_with("é…"));
        assert!(line["key"].as_str().expect("a string").len() < LONGEST + 10);
    }

    #[test]
    fn a_message_may_log_while_it_is_made() {
        struct Talkative;
        impl fmt::Display for Talkative {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(text("inner", "value").trim_end())
            }
        }
        assert!(text(&Talkative.to_string(), "value").contains("inner"));
        let (sender, lines) = mpsc::channel();
        let outer = Text::new(Box::new(move |line| sender.send(line.to_vec()).expect("a receiver")));
        outer.log(&Record::builder().args(format_args!("before {Talkative} after")).build());
        let line = String::from_utf8(lines.recv().expect("a line")).expect("UTF-8");
        assert!(line.contains("before [INFO] http: inner") && line.ends_with("after\n"), "{line}");
    }
}
