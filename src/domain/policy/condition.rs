//! Conditions on attributes: a small typed language without expressions. What it costs is bounded when it is written, and
//! what cannot be known never opens anything.
//!
//! A condition is one comparison of one attribute, a relation that somebody else keeps, or `all`, `any` and `not` of
//! conditions. It has four values ([`Truth`]): besides true and false, what an absent attribute makes of it and what a
//! relation that could not be asked for does. An allowing policy needs [`Truth::True`]; a denying one holds as well where
//! the answer could not be had.

use std::cmp::Ordering;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::attribute::{Attribute, Source};
use super::network::Network;
use super::{Flaw, TEXT_BYTES_MAX};
use crate::domain::comparison::{Atom, Number, Seen};
use crate::domain::time::Timestamp;

/// Conditions within conditions.
pub const DEPTH_MAX: usize = 5;
/// Comparisons and connectives of one policy, together.
pub const NODES_MAX: usize = 50;
/// Values of one comparison.
pub const VALUES_MAX: usize = 100;

/// What is known of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    True,
    False,
    /// It compares an attribute that is not there, or of a kind that cannot be compared so.
    Absent,
    /// It needs a relation that could not be asked for.
    Unavailable,
}

impl Truth {
    fn of(holds: bool) -> Truth {
        if holds { Truth::True } else { Truth::False }
    }
}

/// How an attribute is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    Equals,
    NotEquals,
    In,
    NotIn,
    /// A text holds the text, or a list the element.
    Contains,
    StartsWith,
    EndsWith,
    GreaterThan,
    GreaterOrEqual,
    LessThan,
    LessOrEqual,
    /// An instant, in RFC 3339, is earlier.
    Before,
    After,
    /// An address lies within one of the networks.
    InNetwork,
    NotInNetwork,
    Exists,
    NotExists,
}

impl Operator {
    pub const ALL: [(Operator, &'static str); 17] = [
        (Operator::Equals, "equals"),
        (Operator::NotEquals, "notEquals"),
        (Operator::In, "in"),
        (Operator::NotIn, "notIn"),
        (Operator::Contains, "contains"),
        (Operator::StartsWith, "startsWith"),
        (Operator::EndsWith, "endsWith"),
        (Operator::GreaterThan, "greaterThan"),
        (Operator::GreaterOrEqual, "greaterOrEqual"),
        (Operator::LessThan, "lessThan"),
        (Operator::LessOrEqual, "lessOrEqual"),
        (Operator::Before, "before"),
        (Operator::After, "after"),
        (Operator::InNetwork, "inNetwork"),
        (Operator::NotInNetwork, "notInNetwork"),
        (Operator::Exists, "exists"),
        (Operator::NotExists, "notExists"),
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        Operator::ALL.iter().find(|(operator, _)| *operator == self).map_or("", |(_, name)| name)
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Operator> {
        Operator::ALL.iter().find(|(_, known)| *known == name).map(|(operator, _)| *operator)
    }

    /// How many values it compares with, at least and at most.
    fn arity(self) -> (usize, usize) {
        match self {
            Operator::Exists | Operator::NotExists => (0, 0),
            Operator::In | Operator::NotIn | Operator::InNetwork | Operator::NotInNetwork => (1, VALUES_MAX),
            _ => (1, 1),
        }
    }
}

/// One value that an attribute is compared with, read once.
#[derive(Debug, Clone, PartialEq)]
enum Literal {
    Truth(bool),
    Number(serde_json::Number),
    Text(String),
    /// With the text it came as.
    Instant(Timestamp, String),
    Network(Network, String),
}

/// One attribute, compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    attribute: Attribute,
    operator: Operator,
    values: Vec<Literal>,
}

/// A relation between the subject and an object, which OpenFGA keeps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Relation {
    pub relation: String,
    /// `type:id`; the resource in question when absent.
    pub object: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
    Compare(Comparison),
    Relation(Relation),
}

/// What conditions look at.
pub trait World {
    /// The value of an attribute, if there is one.
    fn see<'a>(&'a self, attribute: &'a Attribute) -> Option<Seen<'a>>;
    /// Whether a relation holds; `None` when it could not be asked for.
    fn relates(&self, relation: &Relation) -> Option<bool>;
}

impl Condition {
    /// What is known of it in this world. All of a connective is looked at only as far as it matters.
    #[must_use]
    pub fn truth(&self, world: &dyn World) -> Truth {
        match self {
            Condition::All(parts) => combined(parts, world, Truth::False, Truth::True),
            Condition::Any(parts) => combined(parts, world, Truth::True, Truth::False),
            Condition::Not(inner) => match inner.truth(world) {
                Truth::True => Truth::False,
                Truth::False => Truth::True,
                unknown => unknown,
            },
            Condition::Compare(comparison) => comparison.truth(world),
            Condition::Relation(relation) => world.relates(relation).map_or(Truth::Unavailable, Truth::of),
        }
    }

    /// The pointer to the first part that keeps it from being true, within the condition.
    #[must_use]
    pub fn blame(&self, world: &dyn World) -> Option<(String, Truth)> {
        match self.truth(world) {
            Truth::True => None,
            truth => Some(self.blamed(world).unwrap_or((String::new(), truth))),
        }
    }

    fn blamed(&self, world: &dyn World) -> Option<(String, Truth)> {
        let Condition::All(parts) = self else { return None };
        parts.iter().enumerate().find_map(|(at, part)| {
            let (pointer, truth) = part.blame(world)?;
            Some((format!("/all/{at}{pointer}"), truth))
        })
    }

    /// Does any part of it ask for a relation?
    #[must_use]
    pub fn has_relation(&self) -> bool {
        match self {
            Condition::All(parts) | Condition::Any(parts) => parts.iter().any(Condition::has_relation),
            Condition::Not(inner) => inner.has_relation(),
            Condition::Compare(_) => false,
            Condition::Relation(_) => true,
        }
    }

    /// Does any part of it compare an attribute of the subject whose name is `any_of` those?
    #[must_use]
    pub fn looks_at_subject(&self, any_of: &dyn Fn(&str) -> bool) -> bool {
        match self {
            Condition::All(parts) | Condition::Any(parts) => parts.iter().any(|part| part.looks_at_subject(any_of)),
            Condition::Not(inner) => inner.looks_at_subject(any_of),
            Condition::Compare(one) => one.attribute.source == Source::Subject && any_of(&one.attribute.name),
            Condition::Relation(_) => false,
        }
    }

    /// May it hold for one subject and not for another?
    #[must_use]
    pub fn depends_on_subject(&self) -> bool {
        self.has_relation() || self.looks_at_subject(&|_| true)
    }

    /// Reads a condition; what is wrong with it is told by pointers below `pointer`.
    #[must_use]
    pub fn read(value: &Value, pointer: &str, flaws: &mut Vec<Flaw>) -> Option<Condition> {
        let mut reader = Reader { nodes: 0, flaws };
        let read = reader.read(value, pointer, 1);
        if reader.nodes > NODES_MAX {
            flaws.push(Flaw::new(pointer, format!("must have at most {NODES_MAX} parts")));
            return None;
        }
        read
    }
}

/// `decisive` of one part decides; otherwise it is `otherwise`, unless something is not known.
fn combined(parts: &[Condition], world: &dyn World, decisive: Truth, otherwise: Truth) -> Truth {
    let mut whole = otherwise;
    for part in parts {
        match part.truth(world) {
            truth if truth == decisive => return decisive,
            Truth::Unavailable => whole = Truth::Unavailable,
            Truth::Absent if whole != Truth::Unavailable => whole = Truth::Absent,
            _ => {}
        }
    }
    whole
}

impl Comparison {
    fn truth(&self, world: &dyn World) -> Truth {
        let Some(seen) = world.see(&self.attribute) else {
            return match self.operator {
                Operator::Exists => Truth::False,
                Operator::NotExists => Truth::True,
                _ => Truth::Absent,
            };
        };
        self.compare(&seen).map_or(Truth::Absent, Truth::of)
    }

    /// `None` when the attribute is of a kind that this operator does not compare.
    fn compare(&self, seen: &Seen<'_>) -> Option<bool> {
        let one = || seen.one();
        let first = self.values.first();
        let value = || first?.atom();
        let any = |atom: Atom<'_>| self.values.iter().filter_map(Literal::atom).any(|value| value.same(atom));
        let ordered = |holds: fn(Ordering) -> bool| one()?.order(value()?).map(holds);
        let text = |holds: fn(&str, &str) -> bool| one()?.texts(value()?).map(|(whole, part)| holds(whole, part));
        match self.operator {
            Operator::Exists => Some(true),
            Operator::NotExists => Some(false),
            Operator::Equals | Operator::In => one().map(any),
            Operator::NotEquals | Operator::NotIn => one().map(|atom| !any(atom)),
            Operator::Contains => match seen {
                Seen::Many(atoms) => Some(atoms.iter().any(|atom| any(*atom))),
                _ => text(|whole, part| whole.contains(part)),
            },
            Operator::StartsWith => text(|whole, part| whole.starts_with(part)),
            Operator::EndsWith => text(|whole, part| whole.ends_with(part)),
            Operator::GreaterThan => ordered(Ordering::is_gt),
            Operator::GreaterOrEqual => ordered(Ordering::is_ge),
            Operator::LessThan => ordered(Ordering::is_lt),
            Operator::LessOrEqual => ordered(Ordering::is_le),
            Operator::Before => Some(instant(one()?)? < first?.instant()?),
            Operator::After => Some(instant(one()?)? > first?.instant()?),
            Operator::InNetwork => Some(self.holds(one()?.text()?.parse().ok()?)),
            Operator::NotInNetwork => Some(!self.holds(one()?.text()?.parse().ok()?)),
        }
    }

    fn holds(&self, address: IpAddr) -> bool {
        self.values.iter().any(|value| matches!(value, Literal::Network(network, _) if network.holds(address)))
    }
}

fn instant(atom: Atom<'_>) -> Option<Timestamp> {
    atom.text()?.parse().ok()
}

impl Literal {
    /// What attributes are compared with, but for instants and networks.
    fn atom(&self) -> Option<Atom<'_>> {
        match self {
            Literal::Truth(truth) => Some(Atom::Truth(*truth)),
            Literal::Number(number) => Number::of(number).map(Atom::Number),
            Literal::Text(text) => Some(Atom::Text(text)),
            Literal::Instant(..) | Literal::Network(..) => None,
        }
    }

    fn instant(&self) -> Option<Timestamp> {
        match self {
            Literal::Instant(at, _) => Some(*at),
            _ => None,
        }
    }

    fn value(&self) -> Value {
        match self {
            Literal::Truth(truth) => json!(truth),
            Literal::Number(number) => json!(number),
            Literal::Text(text) | Literal::Instant(_, text) | Literal::Network(_, text) => json!(text),
        }
    }

    /// # Errors
    /// What it must be.
    fn read(operator: Operator, value: &Value) -> Result<Literal, &'static str> {
        let text = value.as_str().filter(|text| text.len() <= TEXT_BYTES_MAX);
        match operator {
            Operator::Before | Operator::After => {
                let read = text.and_then(|text| Some(Literal::Instant(text.parse().ok()?, text.to_owned())));
                read.ok_or("must be an instant in RFC 3339, such as 2026-11-20T15:00:00Z")
            }
            Operator::InNetwork | Operator::NotInNetwork => {
                let read = text.and_then(|text| Some(Literal::Network(text.parse().ok()?, text.to_owned())));
                read.ok_or("must be an address or a network, such as 10.0.0.0/8")
            }
            Operator::GreaterThan | Operator::GreaterOrEqual | Operator::LessThan | Operator::LessOrEqual => {
                value.as_number().cloned().map(Literal::Number).ok_or("must be a number")
            }
            Operator::StartsWith | Operator::EndsWith => {
                text.map(|text| Literal::Text(text.to_owned())).ok_or("must be a text of at most 256 bytes")
            }
            _ => match value {
                Value::Bool(truth) => Ok(Literal::Truth(*truth)),
                Value::Number(number) => Ok(Literal::Number(number.clone())),
                Value::String(_) => {
                    text.map(|text| Literal::Text(text.to_owned())).ok_or("must be a text of at most 256 bytes")
                }
                _ => Err("must be a text, a number or a boolean"),
            },
        }
    }
}

/// Reads conditions, and remembers how many there were and what is wrong.
struct Reader<'a> {
    nodes: usize,
    flaws: &'a mut Vec<Flaw>,
}

impl Reader<'_> {
    fn flawed<T>(&mut self, pointer: String, message: impl Into<String>) -> Option<T> {
        self.flaws.push(Flaw::new(pointer, message));
        None
    }

    fn read(&mut self, value: &Value, pointer: &str, depth: usize) -> Option<Condition> {
        self.nodes += 1;
        if depth > DEPTH_MAX {
            return self.flawed(pointer.to_owned(), format!("conditions may be nested {DEPTH_MAX} deep"));
        }
        if self.nodes > NODES_MAX {
            return None;
        }
        let Some(object) = value.as_object() else { return self.flawed(pointer.to_owned(), "must be an object") };
        let keys: Vec<(&str, &Value)> = object.iter().map(|(key, value)| (key.as_str(), value)).collect();
        match keys.as_slice() {
            [("all", parts)] => self.parts(parts, &format!("{pointer}/all"), depth).map(Condition::All),
            [("any", parts)] => self.parts(parts, &format!("{pointer}/any"), depth).map(Condition::Any),
            [("not", inner)] => {
                let inner = self.read(inner, &format!("{pointer}/not"), depth + 1)?;
                Some(Condition::Not(Box::new(inner)))
            }
            _ if object.contains_key("relation") => read_relation(object, pointer, self.flaws).map(Condition::Relation),
            _ if object.contains_key("attribute") => {
                read_comparison(object, pointer, self.flaws).map(Condition::Compare)
            }
            _ => {
                let message = "must have exactly one of all, any, not, attribute or relation";
                self.flawed(pointer.to_owned(), message)
            }
        }
    }

    fn parts(&mut self, given: &Value, pointer: &str, depth: usize) -> Option<Vec<Condition>> {
        let Some(items) = given.as_array().filter(|items| !items.is_empty()) else {
            return self.flawed(pointer.to_owned(), "must be a list of conditions");
        };
        let mut parts = Some(Vec::with_capacity(items.len().min(NODES_MAX)));
        for (at, item) in items.iter().enumerate() {
            // All of them are looked at, so that everything that is wrong is told at once.
            match (self.read(item, &format!("{pointer}/{at}"), depth + 1), &mut parts) {
                (Some(part), Some(parts)) => parts.push(part),
                (None, parts) => *parts = None,
                _ => {}
            }
        }
        parts
    }
}

fn unknown_fields(object: &Map<String, Value>, known: &[&str], pointer: &str, flaws: &mut Vec<Flaw>) -> bool {
    let unknown: Vec<&String> = object.keys().filter(|key| !known.contains(&key.as_str())).collect();
    flaws.extend(unknown.iter().map(|key| Flaw::new(format!("{pointer}/{}", escaped(key)), "is not a known field")));
    !unknown.is_empty()
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

fn read_relation(object: &Map<String, Value>, pointer: &str, flaws: &mut Vec<Flaw>) -> Option<Relation> {
    let mut fits = !unknown_fields(object, &["relation", "object"], pointer, flaws);
    let word = |text: &&str, most: usize| {
        !text.is_empty() && text.len() <= most && !text.contains([':', '#', '@', '/']) && is_word(text)
    };
    let relation = object.get("relation").and_then(Value::as_str).filter(|text| word(text, 50));
    if relation.is_none() {
        flaws.push(Flaw::new(format!("{pointer}/relation"), "must be the name of a relation, at most 50 bytes"));
    }
    let named = object.get("object");
    let parts = named.and_then(Value::as_str).and_then(|text| text.split_once(':'));
    let is_object = parts.is_some_and(|(kind, id)| word(&kind, 64) && id.len() <= 128 && !id.is_empty() && is_word(id));
    if named.is_some() && !is_object {
        flaws.push(Flaw::new(format!("{pointer}/object"), "must be an object, such as folder:finance"));
        fits = false;
    }
    let object = named.and_then(Value::as_str).map(str::to_owned);
    relation.filter(|_| fits).map(|relation| Relation { relation: relation.to_owned(), object })
}

fn is_word(text: &str) -> bool {
    !text.chars().any(|letter| letter.is_whitespace() || letter.is_control())
}

fn read_comparison(object: &Map<String, Value>, pointer: &str, flaws: &mut Vec<Flaw>) -> Option<Comparison> {
    let mut fits = !unknown_fields(object, &["attribute", "operator", "values"], pointer, flaws);
    let mut flawed = |field: &str, message: String| {
        flaws.push(Flaw::new(format!("{pointer}/{field}"), message));
        fits = false;
    };
    let attribute = object.get("attribute").and_then(Value::as_str).and_then(Attribute::read);
    if attribute.is_none() {
        flawed("attribute", "must be subject., resource., action. or context. and a name of at most 64 bytes".into());
    }
    let operator = object.get("operator").and_then(Value::as_str).and_then(Operator::from_name);
    let Some(operator) = operator else {
        let names: Vec<&str> = Operator::ALL.iter().map(|(_, name)| *name).collect();
        flawed("operator", format!("must be one of {}", names.join(", ")));
        return None;
    };
    let none = Vec::new();
    let given = match object.get("values") {
        None => &none,
        Some(Value::Array(values)) => values,
        Some(_) => {
            flawed("values", "must be a list".into());
            return None;
        }
    };
    let (least, most) = operator.arity();
    if given.len() < least || given.len() > most {
        let count = if least == most { least.to_string() } else { format!("{least} to {most}") };
        flawed("values", format!("{} compares with {count}", operator.name()));
    }
    let mut values = Vec::with_capacity(given.len().min(VALUES_MAX));
    for (at, value) in given.iter().enumerate().take(VALUES_MAX) {
        match Literal::read(operator, value) {
            Ok(literal) => values.push(literal),
            Err(message) => flawed(&format!("values/{at}"), message.into()),
        }
    }
    let attribute = attribute?;
    fits.then_some(Comparison { attribute, operator, values })
}

impl From<Condition> for Value {
    fn from(condition: Condition) -> Value {
        let list = |parts: Vec<Condition>| Value::Array(parts.into_iter().map(Value::from).collect());
        match condition {
            Condition::All(parts) => json!({ "all": list(parts) }),
            Condition::Any(parts) => json!({ "any": list(parts) }),
            Condition::Not(inner) => json!({ "not": Value::from(*inner) }),
            Condition::Compare(Comparison { attribute, operator, values }) => {
                let values: Vec<Value> = values.iter().map(Literal::value).collect();
                json!({ "attribute": attribute.to_string(), "operator": operator.name(), "values": values })
            }
            Condition::Relation(Relation { relation, object: None }) => json!({ "relation": relation }),
            Condition::Relation(Relation { relation, object }) => json!({ "relation": relation, "object": object }),
        }
    }
}

impl TryFrom<Value> for Condition {
    type Error = String;

    fn try_from(value: Value) -> Result<Condition, String> {
        let mut flaws = Vec::new();
        let condition = Condition::read(&value, "", &mut flaws);
        condition.ok_or_else(|| flaws.first().map_or_else(String::new, |flaw| flaw.message.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Given {
        subject: Map<String, Value>,
        related: Option<bool>,
    }

    impl World for Given {
        fn see<'a>(&'a self, attribute: &'a Attribute) -> Option<Seen<'a>> {
            self.subject.get(&attribute.name).and_then(Seen::of)
        }

        fn relates(&self, _: &Relation) -> Option<bool> {
            self.related
        }
    }

    fn condition(value: Value) -> Condition {
        let mut flaws = Vec::new();
        let read = Condition::read(&value, "", &mut flaws);
        read.unwrap_or_else(|| panic!("{value}: {flaws:?}"))
    }

    fn truth(value: Value, attribute: Value, related: Option<bool>) -> Truth {
        let subject = match attribute {
            Value::Null => Map::new(),
            value => [("a".to_owned(), value)].into_iter().collect(),
        };
        condition(value).truth(&Given { subject, related })
    }

    #[test]
    fn each_operator_holds_where_it_should_and_of_what_is_absent_nothing_is_known() {
        for (operator, attribute, values, expected) in [
            ("equals", json!("x"), json!(["x"]), true),
            ("equals", json!(1), json!([1.0]), true),
            ("equals", json!("1"), json!([1]), false),
            ("equals", json!(9_007_199_254_740_993_i64), json!([9_007_199_254_740_992_i64]), false),
            ("notEquals", json!("x"), json!(["y"]), true),
            ("in", json!("b"), json!(["a", "b"]), true),
            ("notIn", json!("b"), json!(["a", "b"]), false),
            ("contains", json!("ada@example.com"), json!(["@example"]), true),
            ("contains", json!(["a", 7]), json!([7]), true),
            ("contains", json!(["admins"]), json!(["admin"]), false),
            ("startsWith", json!("ada"), json!(["ad"]), true),
            ("endsWith", json!("ada"), json!(["ad"]), false),
            ("greaterThan", json!(3), json!([2.5]), true),
            ("greaterOrEqual", json!(2), json!([2]), true),
            ("lessThan", json!(3), json!([2]), false),
            ("lessOrEqual", json!(2), json!([2]), true),
            ("before", json!("2026-11-20T15:00:00+01:00"), json!(["2026-11-20T15:00:00Z"]), true),
            ("after", json!("2026-11-20T15:00:00Z"), json!(["2026-11-20T15:00:00Z"]), false),
            ("inNetwork", json!("10.1.2.3"), json!(["192.168.0.0/16", "10.0.0.0/8"]), true),
            ("notInNetwork", json!("2001:db8::1"), json!(["2001:db8::/32"]), false),
            ("exists", json!(false), json!([]), true),
            ("notExists", json!(false), json!([]), false),
        ] {
            let said = json!({ "attribute": "subject.a", "operator": operator, "values": values });
            assert_eq!(truth(said.clone(), attribute.clone(), None), Truth::of(expected), "{attribute} {said}");
            let absent = match operator {
                "exists" => Truth::False,
                "notExists" => Truth::True,
                _ => Truth::Absent,
            };
            assert_eq!(truth(said.clone(), Value::Null, None), absent, "{said}");
            assert_eq!(Value::from(condition(said.clone())), said);
        }
        for (operator, attribute, values) in [
            ("notEquals", json!(["x"]), json!(["y"])),
            ("greaterThan", json!("3"), json!([2])),
            ("startsWith", json!(3), json!(["3"])),
            ("before", json!("yesterday"), json!(["2026-11-20T15:00:00Z"])),
            ("notInNetwork", json!("somewhere"), json!(["10.0.0.0/8"])),
        ] {
            let said = json!({ "attribute": "subject.a", "operator": operator, "values": values });
            assert_eq!(truth(said, attribute, None), Truth::Absent, "{operator}: of another kind");
        }
    }

    #[test]
    fn what_is_not_known_stays_so_through_every_connective_that_it_does_not_decide() {
        let (yes, no) = (
            json!({"attribute": "subject.a", "operator": "equals", "values": [1]}),
            json!({"attribute": "subject.a", "operator": "equals", "values": [2]}),
        );
        let absent = json!({"attribute": "subject.b", "operator": "equals", "values": [1]});
        let relation = json!({"relation": "viewer"});
        for (said, expected) in [
            (json!({"all": [yes, no, relation]}), Truth::False),
            (json!({"all": [yes, relation, absent]}), Truth::Unavailable),
            (json!({"all": [yes, absent]}), Truth::Absent),
            (json!({"any": [no, relation, yes]}), Truth::True),
            (json!({"any": [no, absent, relation]}), Truth::Unavailable),
            (json!({"any": [no, absent]}), Truth::Absent),
            (json!({"not": no}), Truth::True),
            (json!({"not": absent}), Truth::Absent),
            (json!({"not": relation}), Truth::Unavailable),
        ] {
            assert_eq!(truth(said.clone(), json!(1), None), expected, "{said}");
        }
        assert_eq!(truth(relation.clone(), json!(1), Some(true)), Truth::True);
        assert!(
            condition(json!({"not": {"any": [relation]}})).has_relation() && !condition(yes.clone()).has_relation()
        );
        let given = Given { subject: Map::new(), related: Some(true) };
        let blamed = condition(json!({"all": [{"relation": "viewer"}, {"all": [yes]}]})).blame(&given);
        assert_eq!(blamed, Some(("/all/1/all/0".to_owned(), Truth::Absent)));
    }

    #[test]
    fn what_is_no_condition_is_told_by_its_pointer() {
        let equals = |values: Value| json!({"attribute": "subject.a", "operator": "equals", "values": values});
        let mut deep = equals(json!([1]));
        for _ in 0..DEPTH_MAX {
            deep = json!({ "not": deep });
        }
        let many: Vec<Value> = (0..NODES_MAX).map(|_| equals(json!([1]))).collect();
        for (said, pointer) in [
            (json!(1), "/c"),
            (json!({}), "/c"),
            (json!({"all": []}), "/c/all"),
            (json!({"all": [{"relation": "a"}], "any": []}), "/c"),
            (json!({"any": [equals(json!([1])), {"not": 3}]}), "/c/any/1/not"),
            (json!({"attribute": "a", "operator": "exists"}), "/c/attribute"),
            (json!({"attribute": "subject.", "operator": "exists"}), "/c/attribute"),
            (json!({"attribute": "subject.a", "operator": "matches"}), "/c/operator"),
            (json!({"attribute": "subject.a", "operator": "exists", "rule": "loop {}"}), "/c/rule"),
            (equals(json!([])), "/c/values"),
            (equals(json!([1, 2])), "/c/values"),
            (equals(json!([{}])), "/c/values/0"),
            (equals(json!(["x".repeat(TEXT_BYTES_MAX + 1)])), "/c/values/0"),
            (json!({"attribute": "subject.a", "operator": "before", "values": ["now"]}), "/c/values/0"),
            (json!({"attribute": "subject.a", "operator": "inNetwork", "values": ["10.0.0.0/33"]}), "/c/values/0"),
            (json!({"attribute": "subject.a", "operator": "lessThan", "values": ["1"]}), "/c/values/0"),
            (json!({"relation": "a:b"}), "/c/relation"),
            (json!({"relation": "a", "object": "folder"}), "/c/object"),
            (deep, "/c/not/not/not/not/not"),
            (json!({ "all": many }), "/c"),
        ] {
            let mut flaws = Vec::new();
            assert_eq!(Condition::read(&said, "/c", &mut flaws), None, "{said}");
            assert_eq!(flaws.first().map(|flaw| flaw.pointer.as_str()), Some(pointer), "{said}: {flaws:?}");
        }
    }
}
