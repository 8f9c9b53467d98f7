//! The JSON log format. Each record is one JSON object on one line of standard error.
//!
//! A record contains all fields, even those whose value is also in the message. Characters that a
//! terminal would interpret are escaped. Untrusted text therefore stays on one line in every
//! viewer.

use std::fmt::{self, Write};
use std::time::SystemTime;

use handoffd::Generation;
use handoffd::text::escaped;
use serde::{Serialize, Serializer};
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::outlet::Outlet;
use super::{EVENT, MESSAGE};

/// A tracing layer that writes each log event as one line of JSON.
pub(super) struct Json {
    outlet: Outlet,
    generation: Generation,
}

/// One log record. Its fields are written in the order in which they are declared here.
#[derive(Serialize)]
struct JsonRecord {
    time: String,
    level: String,
    generation: Generation,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<String>,
    message: String,
    #[serde(serialize_with = "as_object")]
    fields: Vec<(&'static str, Value)>,
}

impl Json {
    pub(super) const fn new(outlet: Outlet, generation: Generation) -> Self {
        Self { outlet, generation }
    }
}

impl<S: Subscriber> Layer<S> for Json {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut record = JsonRecord {
            time: humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
            level: event.metadata().level().as_str().to_ascii_lowercase(),
            generation: self.generation,
            pid: std::process::id(),
            event: None,
            message: String::new(),
            fields: Vec::new(),
        };
        event.record(&mut record);
        // Serialization never fails, because a record contains only strings and numbers.
        if let Ok(line) = serde_json::to_string(&record) {
            self.outlet.put((escape_invisible(&line) + "\n").as_bytes());
        }
    }
}

impl JsonRecord {
    fn add(&mut self, field: &Field, value: impl Into<Value>) {
        self.fields.push((field.name(), value.into()));
    }
}

impl Visit for JsonRecord {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            EVENT => self.event = Some(value.to_owned()),
            MESSAGE => value.clone_into(&mut self.message),
            _ => self.add(field, value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

fn as_object<S: Serializer>(
    fields: &[(&'static str, Value)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(fields.iter().map(|(name, value)| (name, value)))
}

/// Escapes characters that JSON allows in strings but that a terminal or a viewer may interpret.
/// Examples are DEL and characters that break lines or change the direction of text.
fn escape_invisible(line: &str) -> String {
    let mut safe = String::with_capacity(line.len());
    for character in line.chars() {
        let is_plain = character.is_ascii() && character != '\u{7f}';
        if is_plain || !escaped(character.encode_utf8(&mut [0; 4])).starts_with('\\') {
            safe.push(character);
        } else {
            // Four hexadecimal digits are enough for each of these characters. The result is
            // ignored, because writing to a string cannot fail.
            let _ = write!(safe, "\\u{:04x}", u32::from(character));
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use tracing_subscriber::layer::SubscriberExt;

    use super::super::stream::LogStream;
    use super::*;

    /// Returns the lines that the layer writes for the records that `log` creates.
    fn written(log: impl FnOnce()) -> String {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let json = Json::new(Outlet::new(LogStream::Journal(ours)), Generation::FIRST.next());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(json), log);
        let mut record = [0; 4096];
        let length = theirs.recv(&mut record).unwrap();
        String::from_utf8(record[..length].to_vec()).unwrap()
    }

    #[test]
    fn json_fields_keep_their_types_and_their_order() {
        let line = written(|| {
            let (name, wanted, absent) = ("web", Some("x"), None::<&str>);
            tracing::warn!(
                event = "drain.started", name, wanted, absent, count = 3_usize, change = -1,
                seconds = 0.5, late = true, address = %"[::1]:80", list = ?["a"],
                "generation {} is draining", 2
            );
        });
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&value["level"], &value["generation"], &value["event"], &value["message"]),
            (
                &"warn".into(),
                &2.into(),
                &"drain.started".into(),
                &"generation 2 is draining".into()
            )
        );
        assert_eq!(value["pid"], std::process::id());
        assert!(humantime::parse_rfc3339(value["time"].as_str().unwrap()).is_ok());
        let fields = concat!(
            r#""fields":{"name":"web","wanted":"x","count":3,"change":-1,"seconds":0.5,"#,
            r#""late":true,"address":"[::1]:80","list":"[\"a\"]"}}"#,
            "\n"
        );
        assert!(line.ends_with(fields), "{line}");
    }

    #[test]
    fn untrusted_text_stays_on_one_harmless_json_line() {
        let hostile = "\"}\n\r\0\u{1b}[2J\u{7f}\u{9b}\u{2028}\u{202e}\u{feff}\\ \u{e9}";
        let line = written(|| tracing::info!(event = "test", peer = hostile, "of {hostile}"));
        let body = line.strip_suffix('\n').unwrap();
        assert!(!body.contains(char::is_control), "{body:?}");
        assert!(!body.contains(['\u{2028}', '\u{202e}', '\u{feff}']), "{body:?}");
        assert!(body.contains('\u{e9}'), "{body:?}");
        let value: Value = serde_json::from_str(body).unwrap();
        assert_eq!(value["fields"]["peer"], hostile);
        assert_eq!(value["message"], format!("of {hostile}"));
    }
}
