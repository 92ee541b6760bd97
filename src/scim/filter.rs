//! Filters (RFC 7644, 3.4.2.2): parsed by descent with limits, so that no filter is deep or long enough to hurt, and asked
//! of a document.

use serde_json::Value;

use super::{Document, GROUP, Kind, USER, Wrong, member, truth};
use crate::domain::time::Timestamp;

/// Longest filter.
pub const FILTER_BYTES_MAX: usize = 2_048;
/// Comparisons of one filter.
pub const COMPARISONS_MAX: usize = 50;
/// Deepest nesting.
const DEPTH_MAX: usize = 10;

/// An attribute, or a part of one. Names are compared in whatever case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttributePath {
    pub attribute: String,
    pub sub: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    Equal,
    NotEqual,
    Contains,
    StartsWith,
    EndsWith,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    And(Box<Filter>, Box<Filter>),
    Or(Box<Filter>, Box<Filter>),
    Not(Box<Filter>),
    Compare {
        path: AttributePath,
        compare: Compare,
        value: Value,
    },
    Present(AttributePath),
    /// One of a list's items passes.
    Has {
        attribute: AttributePath,
        inner: Box<Filter>,
    },
}

impl AttributePath {
    /// `name.givenName`, also with the URN of its schema before it. What another schema has is one unknown name.
    #[must_use]
    pub fn read(text: &str) -> AttributePath {
        let own = [USER, GROUP].iter().find_map(|urn| {
            let begins = text.get(..urn.len()).is_some_and(|start| start.eq_ignore_ascii_case(urn));
            text.get(urn.len()..)?.strip_prefix(':').filter(|_| begins)
        });
        let is_foreign = own.is_none() && text.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("urn:"));
        let text = own.unwrap_or(text);
        match text.split_once('.').filter(|_| !is_foreign) {
            Some((attribute, sub)) => AttributePath { attribute: attribute.to_owned(), sub: Some(sub.to_owned()) },
            None => AttributePath { attribute: text.to_owned(), sub: None },
        }
    }

    fn is(&self, name: &str) -> bool {
        self.sub.is_none() && self.attribute.eq_ignore_ascii_case(name)
    }

    /// Every value there is.
    fn values<'a>(&self, document: &'a Document) -> Vec<&'a Value> {
        let Some(found) = member(document, &self.attribute) else { return Vec::new() };
        let items = match found {
            Value::Array(items) => items.iter().collect(),
            one => vec![one],
        };
        let part = |item: &'a Value| match (item, &self.sub) {
            (Value::Object(object), Some(sub)) => member(object, sub),
            // A list of objects is compared by their values.
            (Value::Object(object), None) => member(object, "value").or(Some(item)),
            (other, None) => Some(other),
            (_, Some(_)) => None,
        };
        items.into_iter().filter_map(part).filter(|value| !value.is_null()).collect()
    }
}

impl Filter {
    /// # Errors
    /// [`Kind::InvalidFilter`].
    pub fn parse(text: &str) -> Result<Filter, Wrong> {
        if text.len() > FILTER_BYTES_MAX {
            return Err(wrong(format!("a filter has at most {FILTER_BYTES_MAX} bytes")));
        }
        let mut parser = Parser { rest: text, comparisons: 0, depth: 0 };
        let filter = parser.any()?;
        parser.skip_space();
        if parser.rest.is_empty() { Ok(filter) } else { Err(wrong("there is something after the filter")) }
    }

    #[must_use]
    pub fn holds(&self, document: &Document) -> bool {
        match self {
            Filter::And(one, other) => one.holds(document) && other.holds(document),
            Filter::Or(one, other) => one.holds(document) || other.holds(document),
            Filter::Not(inner) => !inner.holds(document),
            Filter::Present(path) => !path.values(document).is_empty(),
            Filter::Has { attribute, inner } => match member(document, &attribute.attribute) {
                Some(Value::Array(items)) => items.iter().filter_map(Value::as_object).any(|item| inner.holds(item)),
                Some(Value::Object(item)) => inner.holds(item),
                _ => false,
            },
            Filter::Compare { path, compare, value } => {
                let values = path.values(document);
                let is_exact =
                    ["id", "externalId", "members"].iter().any(|name| path.attribute.eq_ignore_ascii_case(name));
                let equal = |compare| values.iter().any(|actual| passes(compare, actual, value, is_exact));
                match compare {
                    Compare::Equal if value.is_null() => values.is_empty(),
                    Compare::NotEqual if value.is_null() => !values.is_empty(),
                    Compare::NotEqual => !equal(Compare::Equal),
                    other => equal(*other),
                }
            }
        }
    }

    /// How many comparisons it makes of a document, at most.
    #[must_use]
    pub fn comparisons(&self) -> usize {
        match self {
            Filter::And(one, other) | Filter::Or(one, other) => one.comparisons() + other.comparisons(),
            Filter::Not(inner) => inner.comparisons(),
            Filter::Has { inner, .. } => 1 + inner.comparisons(),
            Filter::Present(_) | Filter::Compare { .. } => 1,
        }
    }

    /// Does it look at this attribute of a document?
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        match self {
            Filter::And(one, other) | Filter::Or(one, other) => one.names(name) || other.names(name),
            Filter::Not(inner) => inner.names(name),
            Filter::Present(path) | Filter::Has { attribute: path, .. } | Filter::Compare { path, .. } => {
                path.attribute.eq_ignore_ascii_case(name)
            }
        }
    }

    /// The text that this one attribute must be equal to, when the filter says no more than that.
    #[must_use]
    pub fn only_equals(&self, name: &str) -> Option<&str> {
        match self {
            Filter::Compare { path, compare: Compare::Equal, value } if path.is(name) => value.as_str(),
            _ => None,
        }
    }

    /// The smallest item that passes: what an operation on an item that there is not makes. `None` when the filter says
    /// more than that parts are equal to values.
    #[must_use]
    pub fn item(&self) -> Option<Document> {
        match self {
            Filter::And(one, other) => {
                let mut item = one.item()?;
                item.extend(other.item()?);
                Some(item)
            }
            Filter::Compare { path, compare: Compare::Equal, value } if path.sub.is_none() => {
                Some([(super::part(&path.attribute).to_owned(), value.clone())].into_iter().collect())
            }
            _ => None,
        }
    }
}

fn passes(compare: Compare, actual: &Value, wanted: &Value, is_exact: bool) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    if let (Some(one), Some(other)) = (actual.as_bool(), truth(wanted)) {
        return compare == Compare::Equal && one == other;
    }
    if let (Some(one), Some(other)) = (actual.as_f64(), wanted.as_f64()) {
        return ordered(compare, one.partial_cmp(&other));
    }
    let (Some(one), Some(other)) = (actual.as_str(), wanted.as_str()) else { return false };
    if let (Ok(one), Ok(other)) = (one.parse::<Timestamp>(), other.parse::<Timestamp>()) {
        return ordered(compare, Some(one.cmp(&other)));
    }
    let fold = |text: &str| if is_exact { text.to_owned() } else { text.to_lowercase() };
    let (one, other) = (fold(one), fold(other));
    return match compare {
        Compare::Contains => one.contains(&other),
        Compare::StartsWith => one.starts_with(&other),
        Compare::EndsWith => one.ends_with(&other),
        _ => ordered(compare, Some(one.cmp(&other))),
    };

    fn ordered(compare: Compare, order: Option<std::cmp::Ordering>) -> bool {
        match compare {
            Compare::Equal => order == Some(Equal),
            Compare::Greater => order == Some(Greater),
            Compare::GreaterOrEqual => matches!(order, Some(Greater | Equal)),
            Compare::Less => order == Some(Less),
            Compare::LessOrEqual => matches!(order, Some(Less | Equal)),
            _ => false,
        }
    }
}

fn wrong(detail: impl Into<String>) -> Wrong {
    Wrong::new(Kind::InvalidFilter, detail)
}

struct Parser<'a> {
    rest: &'a str,
    comparisons: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    /// Takes a word in whatever case, if it is the next one.
    fn takes(&mut self, word: &str) -> bool {
        self.skip_space();
        let is_word = self.rest.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
        let after = self.rest.get(word.len()..).unwrap_or_default();
        let ends = after.chars().next().is_none_or(|next| matches!(next, ' ' | '\t' | '(' | ')' | '[' | ']'));
        if is_word && ends {
            self.rest = after;
        }
        is_word && ends
    }

    fn sign(&mut self, sign: char) -> bool {
        self.skip_space();
        let after = self.rest.strip_prefix(sign);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    fn any(&mut self) -> Result<Filter, Wrong> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(wrong(format!("a filter is nested at most {DEPTH_MAX} deep")));
        }
        let mut filter = self.all()?;
        while self.takes("or") {
            filter = Filter::Or(Box::new(filter), Box::new(self.all()?));
        }
        self.depth -= 1;
        Ok(filter)
    }

    fn all(&mut self) -> Result<Filter, Wrong> {
        let mut filter = self.one()?;
        while self.takes("and") {
            filter = Filter::And(Box::new(filter), Box::new(self.one()?));
        }
        Ok(filter)
    }

    fn one(&mut self) -> Result<Filter, Wrong> {
        if self.takes("not") {
            if !self.sign('(') {
                return Err(wrong("not stands before parentheses"));
            }
            let inner = self.closed(')')?;
            return Ok(Filter::Not(Box::new(inner)));
        }
        if self.sign('(') {
            return self.closed(')');
        }
        let path = self.path()?;
        if self.rest.starts_with('[') && path.sub.is_none() {
            self.sign('[');
            let inner = Box::new(self.closed(']')?);
            return Ok(Filter::Has { attribute: path, inner });
        }
        self.comparison(path)
    }

    fn closed(&mut self, end: char) -> Result<Filter, Wrong> {
        let inner = self.any()?;
        if self.sign(end) { Ok(inner) } else { Err(wrong(format!("{end} is missing"))) }
    }

    fn path(&mut self) -> Result<AttributePath, Wrong> {
        self.skip_space();
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || "_-$:.".contains(letter);
        let end = self.rest.find(|letter| !is_name(letter)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if !name.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '$') {
            return Err(wrong("an attribute is missing"));
        }
        self.rest = rest;
        Ok(AttributePath::read(name))
    }

    fn comparison(&mut self, path: AttributePath) -> Result<Filter, Wrong> {
        self.comparisons += 1;
        if self.comparisons > COMPARISONS_MAX {
            return Err(wrong(format!("a filter has at most {COMPARISONS_MAX} comparisons")));
        }
        if self.takes("pr") {
            return Ok(Filter::Present(path));
        }
        let words = [
            ("eq", Compare::Equal),
            ("ne", Compare::NotEqual),
            ("co", Compare::Contains),
            ("sw", Compare::StartsWith),
            ("ew", Compare::EndsWith),
            ("gt", Compare::Greater),
            ("ge", Compare::GreaterOrEqual),
            ("lt", Compare::Less),
            ("le", Compare::LessOrEqual),
        ];
        let found = words.into_iter().find(|(word, _)| self.takes(word));
        let (_, compare) =
            found.ok_or_else(|| wrong("an operator is missing: eq, ne, co, sw, ew, gt, ge, lt, le or pr"))?;
        Ok(Filter::Compare { path, compare, value: self.value()? })
    }

    fn value(&mut self) -> Result<Value, Wrong> {
        self.skip_space();
        let end = match self.rest.strip_prefix('"') {
            Some(text) => {
                let mut is_escaped = false;
                let end = text.char_indices().find(|(_, letter)| {
                    let ends = *letter == '"' && !is_escaped;
                    is_escaped = *letter == '\\' && !is_escaped;
                    ends
                });
                end.map(|(at, _)| at + 2).ok_or_else(|| wrong("a text does not end"))?
            }
            None => self.rest.find([' ', '\t', ')', ']']).unwrap_or(self.rest.len()),
        };
        let (value, rest) = self.rest.split_at(end);
        self.rest = rest;
        let value: Value = serde_json::from_str(value)
            .map_err(|_| wrong("a value is a text in quotation marks, a number, true, false or null"))?;
        if value.is_object() || value.is_array() { Err(wrong("a value has no parts")) } else { Ok(value) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn jane() -> Document {
        let Value::Object(document) = json!({"id": "A1", "userName": "Jane@Example.com", "active": true,
            "meta": {"lastModified": "2026-11-28T10:00:00.000Z"}, "name": {"familyName": "Doe"},
            "emails": [{"value": "jane@work.example", "type": "work"}, {"value": "j@home.example", "type": "home"}]})
        else {
            panic!("an object")
        };
        document
    }

    #[test]
    fn filters_hold_of_what_they_say() {
        for (text, expected) in [
            (r#"userName eq "jane@example.com""#, true),
            (r#"USERNAME Eq "jane@example.com""#, true),
            (r#"urn:ietf:params:scim:schemas:core:2.0:User:userName sw "JANE""#, true),
            (r#"id eq "a1""#, false),
            (r#"id eq "A1" and active eq true"#, true),
            (r#"active eq "False""#, false),
            (r#"active ne false"#, true),
            (r#"not (active eq true)"#, false),
            (r#"emails co "home""#, true),
            (r#"emails.type eq "work" and emails.value ew ".example""#, true),
            (r#"emails[type eq "work" and value co "home"]"#, false),
            (r#"emails[type eq "home" and value co "home"]"#, true),
            (r#"externalId pr or name.familyName pr"#, true),
            (r#"externalId eq null"#, true),
            (r#"externalId ne "x""#, true),
            (r#"id eq "x" and active eq true or userName co "jane""#, true),
            (r#"id eq "x" and (active eq true or userName co "jane")"#, false),
            (r#"meta.lastModified gt "2026-11-28T09:00:00Z""#, true),
            (r#"meta.lastModified le "2026-11-28T10:00:00+01:00""#, false),
            (r#"urn:other:2.0:User:department eq "x""#, false),
            (r#"name.familyName eq "D\u006fe""#, true),
        ] {
            assert_eq!(Filter::parse(text).unwrap().holds(&jane()), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        let deep = format!("{}a pr{}", "(".repeat(11), ")".repeat(11));
        let many = vec!["a pr"; COMPARISONS_MAX + 1].join(" or ");
        let long = format!("a eq \"{}\"", "x".repeat(FILTER_BYTES_MAX));
        for text in [
            "",
            " ",
            "userName",
            "userName eq",
            "userName eq jane",
            "userName xx \"a\"",
            "a eq \"b",
            "(a pr",
            "a pr)",
            "not a pr",
            "a[b pr",
            "a eq {}",
            "a eq [1]",
            "a pr and",
            "and",
            "1 eq 1",
            "a.b[c pr]",
            &deep,
            &many,
            &long,
        ] {
            assert_eq!(Filter::parse(text).map_err(|wrong| wrong.kind), Err(Kind::InvalidFilter), "{text}");
        }
        assert!(Filter::parse(&format!("{}a pr{}", "(".repeat(9), ")".repeat(9))).is_ok());
    }

    #[test]
    fn a_filter_knows_what_it_looks_at() {
        for (text, comparisons, members) in [
            ("displayName sw \"a\"", 1, false),
            ("not (a pr and (b pr or MEMBERS.value eq \"x\"))", 3, true),
            ("members[value eq \"x\" or type pr]", 3, true),
            ("emails[members pr]", 2, false),
        ] {
            let filter = Filter::parse(text).unwrap();
            assert_eq!((filter.comparisons(), filter.names("members")), (comparisons, members), "{text}");
        }
    }

    #[test]
    fn what_says_one_thing_can_be_looked_up() {
        let only = |text: &str| Filter::parse(text).unwrap().only_equals("userName").map(str::to_owned);
        assert_eq!(only("username eq \"a\""), Some("a".into()));
        for text in ["userName sw \"a\"", "userName eq \"a\" and active eq true", "userName eq true", "id eq \"a\""] {
            assert_eq!(only(text), None, "{text}");
        }
        let item = Filter::parse("Type eq \"work\" and primary eq true").unwrap().item();
        assert_eq!(item.map(Value::Object), Some(json!({"type": "work", "primary": true})));
        assert_eq!(Filter::parse("type ne \"work\"").unwrap().item(), None);
    }
}
