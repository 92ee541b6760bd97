//! How a source is: whether it can be heard, which proof it makes available, and what is missing for it.

/// One source's state, in words for people who run Kong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub standing: Standing,
    /// Names settings and nodes; never an address, a consumer or anything a client sent.
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not configured.
    Off,
    Unknown,
    Up,
    /// It can be heard, and something is missing.
    Degraded,
    Down,
}

impl Health {
    #[must_use]
    pub fn unknown(why: &str) -> Health {
        Health { standing: Standing::Unknown, detail: why.to_owned() }
    }

    #[must_use]
    pub fn of(standing: Standing, proof: &str, missing: &[&str], problems: &[String]) -> Health {
        let mut parts = vec![match standing {
            Standing::Down => format!("proof: none, would be {proof}"),
            _ => format!("proof: {proof}"),
        }];
        if !missing.is_empty() {
            parts.push(format!("missing: {}", missing.join(", ")));
        }
        parts.extend(problems.iter().cloned());
        Health { standing, detail: parts.join("; ") }
    }
}
