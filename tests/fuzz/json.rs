//! A slow, obvious reader of JSON (RFC 8259), to hold the fast ones against.
//!
//! It keeps everything that was written: the order of members, members that are there twice, the digits of a number and
//! the escapes of a text. So a document can be written again in another order and still be the same document.

/// Deepest nesting that is read; the fast readers have limits of their own.
const DEPTH_MAX: usize = 100;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    /// As it was written.
    Number(String),
    /// With its quotes and escapes, as it was written.
    Text(String),
    Array(Vec<Json>),
    /// Names as they were written, and their values.
    Object(Vec<(String, Json)>),
}

/// Reads a whole document; `None` when it is none.
pub(crate) fn read(bytes: &[u8]) -> Option<Json> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    reader.space();
    (reader.at == text.len()).then_some(value)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn word(&mut self, word: &str, value: Json) -> Option<Json> {
        self.text[self.at..].starts_with(word).then(|| {
            self.at += word.len();
            value
        })
    }

    fn value(&mut self, depth: usize) -> Option<Json> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.space();
        match self.peek()? {
            b'n' => self.word("null", Json::Null),
            b't' => self.word("true", Json::Bool(true)),
            b'f' => self.word("false", Json::Bool(false)),
            b'"' => self.string().map(Json::Text),
            b'[' => self.array(depth),
            b'{' => self.object(depth),
            _ => self.number(),
        }
    }

    fn string(&mut self) -> Option<String> {
        let start = self.at;
        self.take(b'"')?;
        loop {
            match self.peek()? {
                b'"' => break self.at += 1,
                b'\\' => {
                    self.at += 1;
                    match self.peek()? {
                        b'u' => {
                            let digits = self.text.get(self.at + 1..self.at + 5)?;
                            digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| self.at += 5)?;
                        }
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 1,
                        _ => return None,
                    }
                }
                0..=0x1f => return None,
                _ => self.at += 1,
            }
        }
        self.text.get(start..self.at).map(str::to_owned)
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    fn number(&mut self) -> Option<Json> {
        let start = self.at;
        let _ = self.take(b'-');
        match self.peek()? {
            b'0' => self.at += 1,
            _ => self.digits()?,
        }
        if self.take(b'.').is_some() {
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(Json::Number(self.text[start..self.at].to_owned()))
    }

    fn array(&mut self, depth: usize) -> Option<Json> {
        let mut items = Vec::new();
        self.take(b'[')?;
        self.space();
        if self.take(b']').is_some() {
            return Some(Json::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            if self.take(b']').is_some() {
                return Some(Json::Array(items));
            }
            self.take(b',')?;
        }
    }

    fn object(&mut self, depth: usize) -> Option<Json> {
        let mut members = Vec::new();
        self.take(b'{')?;
        self.space();
        if self.take(b'}').is_some() {
            return Some(Json::Object(members));
        }
        loop {
            self.space();
            let name = self.string()?;
            self.space();
            self.take(b':')?;
            members.push((name, self.value(depth + 1)?));
            self.space();
            if self.take(b'}').is_some() {
                return Some(Json::Object(members));
            }
            self.take(b',')?;
        }
    }
}

/// What a text with quotes and escapes says; `None` for half of a surrogate pair.
pub(crate) fn unescaped(raw: &str) -> Option<String> {
    String::from_utf16(&units(raw)).ok()
}

/// The same, with U+FFFD three times for such a half, which in bytes would be as long.
pub(crate) fn unescaped_lossy(raw: &str) -> String {
    let letters = char::decode_utf16(units(raw));
    letters.map(|letter| letter.map_or_else(|_| "\u{fffd}".repeat(3), String::from)).collect()
}

/// UTF-16 of a text that was read.
fn units(raw: &str) -> Vec<u16> {
    let mut units: Vec<u16> = Vec::new();
    let mut letters = raw[1..raw.len() - 1].chars();
    while let Some(letter) = letters.next() {
        let escape = if letter == '\\' { letters.next() } else { None };
        match escape {
            None => units.extend_from_slice(letter.encode_utf16(&mut [0; 2])),
            Some('u') => {
                let digits: String = letters.by_ref().take(4).collect();
                units.push(u16::from_str_radix(&digits, 16).unwrap_or_default());
            }
            Some('n') => units.push(10),
            Some('t') => units.push(9),
            Some('r') => units.push(13),
            Some('b') => units.push(8),
            Some('f') => units.push(12),
            Some(plain) => units.push(plain as u16),
        }
    }
    units
}

impl Json {
    /// The document again, without spaces.
    pub(crate) fn write(&self) -> String {
        match self {
            Json::Null => "null".into(),
            Json::Bool(value) => value.to_string(),
            Json::Number(raw) | Json::Text(raw) => raw.clone(),
            Json::Array(items) => format!("[{}]", items.iter().map(Json::write).collect::<Vec<_>>().join(",")),
            Json::Object(members) => {
                let members: Vec<_> = members.iter().map(|(name, value)| format!("{name}:{}", value.write())).collect();
                format!("{{{}}}", members.join(","))
            }
        }
    }

    /// The same document with every object's members in the opposite order.
    pub(crate) fn reversed(&self) -> Json {
        match self {
            Json::Array(items) => Json::Array(items.iter().map(Json::reversed).collect()),
            Json::Object(members) => {
                Json::Object(members.iter().rev().map(|(name, value)| (name.clone(), value.reversed())).collect())
            }
            other => other.clone(),
        }
    }

    pub(crate) fn members(&self) -> &[(String, Json)] {
        match self {
            Json::Object(members) => members,
            _ => &[],
        }
    }

    /// The values of every member with one of these names.
    pub(crate) fn all(&self, names: &[&str]) -> Vec<&Json> {
        let named = |raw: &str| unescaped(raw).is_some_and(|name| names.contains(&name.as_str()));
        self.members().iter().filter(|(raw, _)| named(raw)).map(|(_, value)| value).collect()
    }

    /// The value of the first member with this name.
    pub(crate) fn named(&self, name: &str) -> Option<&Json> {
        self.all(&[name]).first().copied()
    }

    pub(crate) fn has_unicode_names(&self) -> bool {
        self.members().iter().all(|(raw, _)| unescaped(raw).is_some())
    }

    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Json::Text(raw) => unescaped(raw),
            _ => None,
        }
    }

    pub(crate) fn lossy_text(&self) -> Option<String> {
        match self {
            Json::Text(raw) => Some(unescaped_lossy(raw)),
            _ => None,
        }
    }

    /// Is every text of it, names included, Unicode?
    pub(crate) fn is_unicode(&self) -> bool {
        match self {
            Json::Text(raw) => unescaped(raw).is_some(),
            Json::Array(items) => items.iter().all(Json::is_unicode),
            Json::Object(members) => members.iter().all(|(raw, value)| unescaped(raw).is_some() && value.is_unicode()),
            _ => true,
        }
    }

    /// A number without fraction and exponent that fits.
    pub(crate) fn integer(&self) -> Option<i64> {
        match self {
            Json::Number(raw) if raw != "-0" => raw.parse().ok(),
            _ => None,
        }
    }

    /// Is there, anywhere in it, an object with two members of one name?
    pub(crate) fn says_something_twice(&self) -> bool {
        match self {
            Json::Array(items) => items.iter().any(Json::says_something_twice),
            Json::Object(members) => {
                let mut names: Vec<_> = members.iter().map(|(raw, _)| unescaped(raw)).collect();
                names.sort_unstable();
                names.windows(2).any(|pair| pair[0] == pair[1])
                    || members.iter().any(|(_, value)| value.says_something_twice())
            }
            _ => false,
        }
    }

    /// How deep it is nested: 0 for a value that holds no others.
    pub(crate) fn depth(&self) -> usize {
        match self {
            Json::Array(items) => 1 + items.iter().map(Json::depth).max().unwrap_or(0),
            Json::Object(members) => 1 + members.iter().map(|(_, value)| value.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }
}
