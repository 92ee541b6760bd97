//! `[[notify.routes]]`: which alerts go to which channels, as it is written.

use serde::Deserialize;

use super::Notify;
use crate::domain::notice::{AlertKind, Severity};
use crate::domain::routing::{self, Escalation, Routing};

/// A route. What is left out matches everything.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Route {
    pub tenants: Vec<String>,
    /// `warning`, `critical`.
    pub severities: Vec<String>,
    /// `quotaThreshold`, `budgetBurn`, `reconciliationDrift`.
    pub kinds: Vec<String>,
    /// Names of channels.
    pub channels: Vec<String>,
    /// The channel to tell when one of those above is not reached in time, or never.
    pub escalate_to: Option<String>,
    pub escalate_after_ms: u64,
    pub quiet_hours: Option<QuietHours>,
}

/// A part of the day in which warnings wait.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuietHours {
    /// An IANA name.
    pub time_zone: String,
    /// `HH:MM`.
    pub from: String,
    /// `HH:MM`, of the next day unless it is later than `from`.
    pub to: String,
    /// `mon` to `sun`: the days on which they begin; every day when absent.
    #[serde(default)]
    pub days: Vec<String>,
}

impl Default for Route {
    fn default() -> Route {
        Route {
            tenants: Vec::new(),
            severities: Vec::new(),
            kinds: Vec::new(),
            channels: Vec::new(),
            escalate_to: None,
            escalate_after_ms: 5 * 60_000,
            quiet_hours: None,
        }
    }
}

impl Notify {
    /// The routes, once they are known to be valid.
    #[must_use]
    pub fn routing(&self) -> Routing {
        Routing {
            channels: self.channels.iter().map(|channel| channel.name().to_owned()).collect(),
            routes: self.routes.iter().filter_map(|route| route.read(&mut |_, _| ())).collect(),
            burn_span_micros: i64::try_from(self.burn_alert_ms).unwrap_or(i64::MAX).saturating_mul(1_000),
        }
    }

    /// What is wrong with the routes, by key.
    pub(super) fn route_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (at, route) in self.routes.iter().enumerate() {
            let mut wrong = |key: &str, problem: &str| problems.push(format!("notify.routes[{at}].{key}: {problem}"));
            route.read(&mut wrong);
            if route.channels.is_empty() {
                wrong("channels", "must name at least one channel");
            }
            for name in &route.channels {
                if !self.is_channel(name) {
                    wrong("channels", &format!("no channel is named {name}"));
                }
            }
            if let Some(name) = &route.escalate_to {
                if !self.is_channel(name) {
                    wrong("escalate_to", &format!("no channel is named {name}"));
                }
                if route.channels.contains(name) {
                    wrong("escalate_to", "must not be one of the route's channels");
                }
            }
        }
        problems
    }

    fn is_channel(&self, name: &str) -> bool {
        self.channels.iter().any(|channel| channel.name() == name)
    }
}

impl Route {
    /// The route, or what is `wrong` with it, by key.
    fn read(&self, wrong: &mut impl FnMut(&str, &str)) -> Option<routing::Route> {
        let tenants = all(&self.tenants, |text| text.parse().ok());
        if tenants.is_none() {
            wrong("tenants", "must be ids of tenants");
        }
        let severities = all(&self.severities, Severity::from_name);
        if severities.is_none() {
            wrong("severities", "must be of warning, critical");
        }
        let kinds = all(&self.kinds, AlertKind::from_name);
        if kinds.is_none() {
            wrong("kinds", "must be of quotaThreshold, budgetBurn, reconciliationDrift");
        }
        let after_micros = i64::try_from(self.escalate_after_ms.saturating_mul(1_000)).ok();
        if after_micros.is_none_or(|micros| micros < 1_000_000) {
            wrong("escalate_after_ms", "must be at least 1000");
        }
        let quiet = self.quiet_hours.as_ref().map(|quiet| {
            let read = routing::QuietHours::read(&quiet.time_zone, &quiet.from, &quiet.to, &quiet.days);
            read.inspect_err(|problem| {
                let (key, problem) = problem.split_once(": ").unwrap_or(("", problem));
                wrong(&format!("quiet_hours.{key}"), problem);
            })
            .ok()
        });
        let after_micros = after_micros?;
        Some(routing::Route {
            tenants: tenants?,
            severities: severities?,
            kinds: kinds?,
            channels: self.channels.clone(),
            escalation: self.escalate_to.clone().map(|to| Escalation { to, after_micros }),
            quiet_hours: match quiet {
                Some(read) => Some(read?),
                None => None,
            },
        })
    }
}

fn all<T>(texts: &[String], read: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    texts.iter().map(|text| read(text)).collect()
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::domain::time::MICROS_PER_MINUTE;

    const CHANNELS: &str = "[nats]\nurl = \"nats://127.0.0.1:4222\"\n\
        [[notify.channels]]\ntype = \"nats\"\nname = \"bus\"\n\
        [[notify.channels]]\ntype = \"slack\"\nname = \"chat\"\nurl = \"https://hooks.example.com/1\"\n";

    #[test]
    fn a_route_reads_as_it_is_written() {
        let route = "[[notify.routes]]\nseverities = [\"warning\"]\nkinds = [\"budgetBurn\"]\nchannels = [\"chat\"]\n\
            tenants = [\"0199a8b2-5c00-7abc-8def-0123456789ab\"]\nescalate_to = \"bus\"\nescalate_after_ms = 120000\n\
            quiet_hours = { time_zone = \"Europe/Berlin\", from = \"22:00\", to = \"07:00\", days = [\"fri\"] }\n";
        let routing = Config::read(&format!("{CHANNELS}{route}"), None).unwrap().notify.routing();
        assert_eq!(routing.channels, ["bus", "chat"]);
        let [route] = &routing.routes[..] else { panic!("{routing:?}") };
        assert_eq!((route.tenants.len(), route.severities.len(), route.kinds.len()), (1, 1, 1));
        let escalation = route.escalation.as_ref().unwrap();
        assert_eq!((escalation.to.as_str(), escalation.after_micros), ("bus", 2 * MICROS_PER_MINUTE));
        assert!(route.quiet_hours.is_some());
        assert_eq!(Config::read(CHANNELS, None).unwrap().notify.routing().routes, []);
    }

    #[test]
    fn every_problem_of_a_route_is_named_by_its_key() {
        let problems = |route: &str| {
            let read = Config::read(&format!("{CHANNELS}[[notify.routes]]\n{route}"), None);
            read.unwrap_err().problems.join("\n")
        };
        for (route, key) in [
            ("", "channels"),
            ("channels = [\"nobody\"]", "channels"),
            ("channels = [\"chat\"]\ntenants = [\"Acme\"]", "tenants"),
            ("channels = [\"chat\"]\nseverities = [\"info\"]", "severities"),
            ("channels = [\"chat\"]\nkinds = [\"weather\"]", "kinds"),
            ("channels = [\"chat\"]\nescalate_to = \"nobody\"", "escalate_to"),
            ("channels = [\"chat\"]\nescalate_to = \"chat\"", "escalate_to"),
            ("channels = [\"chat\"]\nescalate_after_ms = 10", "escalate_after_ms"),
            (
                "channels = [\"chat\"]\nquiet_hours = { time_zone = \"UTC\", from = \"1\", to = \"07:00\" }",
                "quiet_hours.from",
            ),
        ] {
            let found = problems(route);
            assert!(found.starts_with(&format!("notify.routes[0].{key}: ")), "{route}: {found}");
        }
    }
}
