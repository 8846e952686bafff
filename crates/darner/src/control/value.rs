//! Requests and answers as elements of syslink: a value says itself what it is, so that a program in any language can
//! read it without knowing its type. docs/syslink.md §Values.

use darner_syslink::{Element, Limits, Message, ReadError, Tag};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

use crate::error::{Failure, Result};

const NULL: Tag = Tag(1);
const BOOL: Tag = Tag(2);
const UINT: Tag = Tag(3);
const INT: Tag = Tag(4);
const REAL: Tag = Tag(5);
const TEXT: Tag = Tag(6);
const LIST: Tag = Tag(7);
const MAP: Tag = Tag(8);
/// In the root: a message with the value, as a bulk buffer.
const ENCLOSED: Tag = Tag(9);

/// What fits into a message itself; larger values are enclosed.
const INLINE_MAX: u64 = 32 << 10;
const INLINE_ELEMENTS: usize = 2000;

/// What is accepted of an enclosed value.
const ENCLOSED_LIMITS: Limits =
    Limits { message: 64 << 20, depth: 32, elements: 4 << 20, bulks: 0, bulk: 0, calls: 1, bytes: 64 << 20 };

/// A message with a value.
pub(crate) fn encode(tag: Tag, value: &impl Serialize) -> Result<Message> {
    let value = serde_json::to_value(value)?;
    let mut whole = Message::new(tag);
    let elements = put(&mut whole, &value);
    if whole.size() <= INLINE_MAX && elements <= INLINE_ELEMENTS {
        return Ok(whole);
    }
    let mut outer = Message::new(tag);
    outer.enclose(ENCLOSED, &whole);
    Ok(outer)
}

/// The value of a message.
pub(crate) fn decode<T: DeserializeOwned>(message: &Message) -> Result<T> {
    let nonsense = |e: ReadError| Failure::new(format!("a message between commands and daemon makes no sense: {e}"));
    let enclosed = message.enclosed(ENCLOSED, &ENCLOSED_LIMITS).map_err(nonsense)?;
    let message = enclosed.as_ref().unwrap_or(message);
    let first = message.root().children().next().ok_or(ReadError::Missing(MAP)).map_err(nonsense)?;
    Ok(serde_json::from_value(get(first).map_err(nonsense)?)?)
}

/// Adds a value; returns how many elements that took.
fn put(m: &mut Message, value: &Value) -> usize {
    match value {
        Value::Null => m.uint(NULL, 0),
        Value::Bool(b) => m.uint(BOOL, (*b).into()),
        Value::Number(n) => match (n.as_u64(), n.as_i64(), n.as_f64()) {
            (Some(n), ..) => m.uint(UINT, n),
            (None, Some(n), _) => m.int(INT, n),
            (None, None, n) => m.bytes(REAL, &n.unwrap_or(f64::NAN).to_le_bytes()),
        },
        Value::String(text) => m.text(TEXT, text),
        Value::Array(all) => {
            let mut elements = 1;
            m.group(LIST, |m| elements += all.iter().map(|v| put(m, v)).sum::<usize>());
            return elements;
        }
        Value::Object(all) => {
            let mut elements = 1;
            m.group(MAP, |m| {
                for (key, v) in all {
                    m.text(TEXT, key);
                    elements += 1 + put(m, v);
                }
            });
            return elements;
        }
    };
    1
}

/// (The depth was limited when the message was verified.)
fn get(e: Element<'_>) -> std::result::Result<Value, ReadError> {
    Ok(match e.tag() {
        NULL => Value::Null,
        BOOL => Value::Bool(e.as_uint()? != 0),
        UINT => e.as_uint()?.into(),
        INT => e.as_int()?.into(),
        REAL => {
            let bytes = e.as_bytes()?.try_into().map_err(|_| ReadError::Range(REAL))?;
            Number::from_f64(f64::from_le_bytes(bytes)).map_or(Value::Null, Value::Number)
        }
        TEXT => e.as_text()?.into(),
        LIST => Value::Array(e.children().map(get).collect::<std::result::Result<_, _>>()?),
        MAP => {
            let mut all = Map::new();
            let mut children = e.children();
            while let Some(key) = children.next() {
                let key = if key.tag() == TEXT { key.as_text()? } else { return Err(ReadError::Type(key.tag())) };
                let value = children.next().ok_or(ReadError::Missing(MAP))?;
                all.insert(key.into(), get(value)?);
            }
            Value::Object(all)
        }
        other => return Err(ReadError::Type(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_value_comes_back_as_it_was_in_a_message_or_enclosed() {
        for text in [
            r#"{"call":"status"}"#,
            r#"{"a":[1,-2,2.5,null,true,false,"ä",{"":[]},{}],"b":18446744073709551615,"c":-9223372036854775808}"#,
            r#""done""#,
            "[]",
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(decode::<Value>(&encode(Tag(1), &value).unwrap()).unwrap(), value);
        }
        let long: Vec<String> = (0..50_000).map(|n| format!("line {n}")).collect();
        let message = encode(Tag(1), &long).unwrap();
        assert_eq!(message.bulk().len(), 1);
        assert_eq!(decode::<Vec<String>>(&message).unwrap(), long);
    }

    #[test]
    fn what_is_no_value_is_an_error() {
        let mut no_value = Message::new(Tag(1));
        assert!(decode::<Value>(&no_value).is_err());
        no_value.group(MAP, |m| {
            m.text(TEXT, "a key without a value");
        });
        assert!(decode::<Value>(&no_value).is_err());
        let mut bad_key = Message::new(Tag(1));
        bad_key.group(MAP, |m| {
            m.uint(UINT, 1).uint(UINT, 2);
        });
        assert!(decode::<Value>(&bad_key).is_err());
        let mut unknown = Message::new(Tag(1));
        unknown.uint(Tag(77), 1);
        assert!(decode::<Value>(&unknown).is_err());
        let mut garbage = Message::new(Tag(1));
        garbage.attach(ENCLOSED, vec![1, 2, 3]);
        assert!(decode::<Value>(&garbage).is_err());
    }
}
