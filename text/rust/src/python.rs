//! Values as Python prints them: `str`, `repr` and `json.dumps`. Templates were written against
//! Python's Jinja, so their text depends on its spelling of numbers, quotes and separators.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Deeper values are refused. Python gives up near 1000; JSON input is bounded at 128.
const DEPTH_MAX: usize = 500;

fn too_deep() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("value is nested deeper than {DEPTH_MAX}"))
}

/// `str(value)`: strings as they are, anything else as `repr`.
pub fn str(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String | ValueKind::Undefined => Ok(value.to_string()),
        _ => {
            let mut out = String::new();
            repr(value, DEPTH_MAX, &mut out)?;
            Ok(out)
        }
    }
}

fn repr(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    let depth = depth.checked_sub(1).ok_or_else(too_deep)?;
    match value.kind() {
        ValueKind::String => repr_string(value.as_str().unwrap_or_default(), out),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::Seq => {
            out.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(&item, depth, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(&key, depth, out)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, depth, out)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

fn repr_string(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => float(number),
        _ => value.to_string(),
    }
}

/// `repr(float)`: shortest digits that round-trip, scientific outside of 1e-4 to 1e16.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = number.to_string();
    if plain.contains('.') {
        plain
    } else {
        plain + ".0"
    }
}

/// The arguments of `json.dumps` that Hugging Face's `tojson` passes on.
pub struct JsonStyle {
    pub ensure_ascii: bool,
    /// None for a single line.
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
}

/// `json.dumps(value)`.
pub fn json(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut out = String::new();
    write_json(value, style, 0, &mut out)?;
    Ok(out)
}

fn write_json(v: &Value, style: &JsonStyle, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(too_deep());
    }
    match v.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if v.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&json_number(v)),
        ValueKind::String => json_string(v.as_str().unwrap_or_default(), style, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let mut empty = true;
            out.push('[');
            for item in v.try_iter()? {
                separate(style, &mut empty, depth + 1, out);
                write_json(&item, style, depth + 1, out)?;
            }
            close(style, empty, depth, out);
            out.push(']');
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = v.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            let mut empty = true;
            out.push('{');
            for key in keys {
                separate(style, &mut empty, depth + 1, out);
                match key.kind() {
                    ValueKind::String => json_string(key.as_str().unwrap_or_default(), style, out),
                    ValueKind::Number | ValueKind::Bool | ValueKind::None => {
                        out.push('"');
                        write_json(&key, style, depth + 1, out)?;
                        out.push('"');
                    }
                    kind => return Err(not_serializable(kind)),
                }
                out.push_str(&style.key_separator);
                write_json(&v.get_item(&key)?, style, depth + 1, out)?;
            }
            close(style, empty, depth, out);
            out.push('}');
        }
        kind => return Err(not_serializable(kind)),
    }
    Ok(())
}

fn not_serializable(kind: ValueKind) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a value that is {kind} has no JSON form"))
}

fn new_line(style: &JsonStyle, depth: usize, out: &mut String) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        for _ in 0..depth {
            out.push_str(indent);
        }
    }
}

fn separate(style: &JsonStyle, empty: &mut bool, depth: usize, out: &mut String) {
    if !*empty {
        out.push_str(&style.item_separator);
    }
    *empty = false;
    new_line(style, depth, out);
}

fn close(style: &JsonStyle, empty: bool, depth: usize, out: &mut String) {
    if !empty {
        new_line(style, depth, out);
    }
}

fn json_number(value: &Value) -> String {
    match number(value).as_str() {
        "nan" => "NaN".into(),
        "inf" => "Infinity".into(),
        "-inf" => "-Infinity".into(),
        text => text.into(),
    }
}

fn json_string(text: &str, style: &JsonStyle, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || (style.ensure_ascii && (c as u32) > 0x7e) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
