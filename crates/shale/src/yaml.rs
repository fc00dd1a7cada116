//! A minimal YAML emitter for JSON values: block style, strings quoted where they could be read as
//! something else (JSON's quoting is valid YAML).

use serde_json::Value;

/// `value` as a YAML document.
pub(crate) fn emit(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block(&mut text, value, 0),
        Value::Array(items) if !items.is_empty() => block(&mut text, value, 0),
        scalar => {
            text += &inline(scalar);
            text.push('\n');
        }
    }
    text
}

fn block(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                text.push_str(&indent);
                entry(text, key, value, depth);
            }
        }
        Value::Array(items) => {
            for item in items {
                text.push_str(&indent);
                text.push_str("- ");
                match item {
                    Value::Object(map) if !map.is_empty() => {
                        for (at, (key, value)) in map.iter().enumerate() {
                            if at > 0 {
                                text.push_str(&indent);
                                text.push_str("  ");
                            }
                            entry(text, key, value, depth + 1);
                        }
                    }
                    Value::Array(inner) if !inner.is_empty() => {
                        text.push('\n');
                        block(text, item, depth + 1);
                    }
                    scalar => {
                        text.push_str(&inline(scalar));
                        text.push('\n');
                    }
                }
            }
        }
        scalar => {
            text.push_str(&inline(scalar));
            text.push('\n');
        }
    }
}

fn entry(text: &mut String, key: &str, value: &Value, depth: usize) {
    text.push_str(&string(key));
    text.push(':');
    match value {
        Value::Object(map) if !map.is_empty() => {
            text.push('\n');
            block(text, value, depth + 1);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            block(text, value, depth + 1);
        }
        scalar => {
            text.push(' ');
            text.push_str(&inline(scalar));
            text.push('\n');
        }
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        // null, true, numbers, {} and [] are the same in YAML
        other => other.to_string(),
    }
}

fn string(text: &str) -> String {
    let words = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || " ._-/+,()%".contains(c))
        && !text.ends_with(' ')
        && !words.contains(&text.to_ascii_lowercase().as_str());
    // what starts like a number, a date or a UUID is quoted too: some readers guess
    if plain { text.to_owned() } else { Value::String(text.to_owned()).to_string() }
}

#[cfg(test)]
mod tests {
    use super::emit;
    use serde_json::json;

    #[test]
    fn values_look_like_this() {
        let value = json!({
            "name": "web", "size": 8, "empty": [], "none": null, "odd": "yes", "text": "a: b",
            "list": [{"a": 1, "b": {"c": "x y"}}, 2, [3, 4]], "nested": {"deep": {"er": true}},
        });
        let expected = "\
empty: []
list:
  - a: 1
    b:
      c: x y
  - 2
  - 
    - 3
    - 4
name: web
nested:
  deep:
    er: true
none: null
odd: \"yes\"
size: 8
text: \"a: b\"
";
        assert_eq!(emit(&value), expected);
        assert_eq!(emit(&json!([])), "[]\n");
        assert_eq!(emit(&json!("2026-11-22")), "\"2026-11-22\"\n");
    }
}
