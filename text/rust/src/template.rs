//! Chat templates: minijinja set up as transformers sets up Jinja.

use std::fmt::Write as _;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{context, Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use regex::Regex;

use crate::python;

/// Steps of the template machine before a rendering is given up: a conversation of a thousand messages
/// takes some 100,000; an endless loop stops within a second.
const FUEL: u64 = 5_000_000;
/// Largest rendering.
const OUTPUT_BYTES_MAX: usize = 256 << 20;
/// Largest source; published templates stay below 50 KiB.
const SOURCE_BYTES_MAX: usize = 256 << 10;
/// The stack to compile and render on: a hostile template can build expressions nested as deep as
/// `SOURCE_BYTES_MAX` and values as deep as `FUEL` allow, which are freed recursively. Untouched pages
/// cost nothing.
const STACK_BYTES: usize = 1 << 30;
const NAME: &str = "chat_template";

pub struct Template {
    environment: Environment<'static>,
}

pub struct Conversation<'a> {
    /// JSON array; only the first `message_limit` messages are rendered.
    pub messages: &'a str,
    pub message_limit: usize,
    /// JSON array, or empty for none.
    pub tools: &'a str,
    pub add_generation_prompt: bool,
    pub bos_token: &'a str,
    pub eos_token: &'a str,
    /// What `strftime_now` takes for now, in seconds since 1970 UTC; negative for the clock.
    pub now_s: i64,
}

impl Template {
    pub fn compile(source: &str) -> Result<Self, String> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(format!("the template is larger than {SOURCE_BYTES_MAX} bytes"));
        }
        on_large_stack(|| Self::compile_here(source))
    }

    fn compile_here(source: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, _, value| {
            out.write_str(&python::str(value)?).map_err(Error::from)
        });
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", tojson);
        environment.add_filter("string", |value: &Value| python::str(value));
        // In Python strings and mappings have a length and items too.
        environment.add_test("sequence", |value: &Value| {
            matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
        });
        environment.add_test("iterable", |value: &Value| {
            value.kind() == ValueKind::String || value.try_iter().is_ok()
        });
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|error| explain(&error))?;
        Ok(Self { environment })
    }

    pub fn render(&self, conversation: &Conversation) -> Result<String, String> {
        on_large_stack(|| self.render_here(conversation))
    }

    fn render_here(&self, conversation: &Conversation) -> Result<String, String> {
        let mut messages: Vec<Value> = serde_json::from_str(conversation.messages)
            .map_err(|error| format!("messages are not a JSON array: {error}"))?;
        messages.truncate(conversation.message_limit);
        let tools: Value = if conversation.tools.is_empty() {
            Value::from(())
        } else {
            serde_json::from_str::<Vec<Value>>(conversation.tools)
                .map_err(|error| format!("tools are not a JSON array: {error}"))?
                .into()
        };
        let context = context! {
            messages => messages,
            tools => tools,
            documents => Value::from(()),
            add_generation_prompt => conversation.add_generation_prompt,
            bos_token => conversation.bos_token,
            eos_token => conversation.eos_token,
            // Under a name that no template uses; read by strftime_now.
            lemo_now_s => conversation.now_s,
        };
        let mut output = Output::default();
        let template = self.environment.get_template(NAME).map_err(|error| explain(&error))?;
        match template.render_captured_to(context, &mut output) {
            Ok(_) => String::from_utf8(output.bytes).map_err(|error| error.to_string()),
            Err(_) if output.overflowed => {
                Err(format!("the text is larger than {OUTPUT_BYTES_MAX} bytes"))
            }
            Err(error) => Err(explain(&error)),
        }
    }
}

/// Runs `body` on a thread with `STACK_BYTES`; a panic there goes on here.
fn on_large_stack<T: Send>(body: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, body)
            .map_err(|error| format!("no thread for the template: {error}"))?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    overflowed: bool,
}

impl io::Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.len() > OUTPUT_BYTES_MAX - self.bytes.len() {
            self.overflowed = true;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `{% generation %}` marks the assistant's text for transformers. minijinja does not know the tag; an
/// `if` that always holds has the same text and the same white-space rules.
fn without_generation_tags(source: &str) -> String {
    let open = Regex::new(r"\{%([-+]?)\s*generation\s*([-+]?)%\}").expect("valid pattern");
    let close = Regex::new(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}").expect("valid pattern");
    let opened = open.replace_all(source, "{%${1} if true ${2}%}");
    close.replace_all(&opened, "{%${1} endif ${2}%}").into_owned()
}

/// "reason (line 3)": the template's own words when it called raise_exception.
fn explain(error: &Error) -> String {
    let mut text = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => format!("the template did not end within {FUEL} steps"),
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_string(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    if let Some(line) = error.line() {
        let _ = write!(text, " (line {line})");
    }
    text
}

/// The arguments are those of transformers' own filter of this name, not of Jinja's.
fn tojson(value: &Value, ensure_ascii: Option<bool>, kwargs: Kwargs) -> Result<String, Error> {
    let ensure_ascii = match ensure_ascii {
        Some(given) => given,
        None => kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    let indent = match kwargs.get::<Option<Value>>("indent")? {
        None => None,
        Some(given) if given.is_none() => None,
        Some(given) if given.kind() == ValueKind::String => given.as_str().map(str::to_string),
        Some(given) => {
            let width = i64::try_from(given)?.clamp(0, 64);
            Some(" ".repeat(width as usize))
        }
    };
    let separators = kwargs.get::<Option<Vec<String>>>("separators")?;
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let (item_separator, key_separator) = match separators.as_deref() {
        None if indent.is_some() => (",".to_string(), ": ".to_string()),
        None => (", ".to_string(), ": ".to_string()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "separators must be a pair"))
        }
    };
    python::json(
        value,
        &python::JsonStyle { ensure_ascii, indent, item_separator, key_separator, sort_keys },
    )
}

fn strftime_now(state: &State, format: &str) -> Result<String, Error> {
    let fixed = state.lookup("lemo_now_s").and_then(|value| i64::try_from(value).ok());
    let now_s = match fixed {
        Some(seconds) if seconds >= 0 => seconds,
        _ => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64),
    };
    let bad_format =
        || Error::new(ErrorKind::InvalidOperation, format!("strftime_now: bad format {format:?}"));
    let now = chrono::DateTime::from_timestamp(now_s, 0).ok_or_else(bad_format)?;
    let mut text = String::new();
    write!(text, "{}", now.format(format)).map_err(|_| bad_format())?;
    Ok(text)
}
