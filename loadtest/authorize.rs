//! What a decision by a tenant's own policies costs: what was decided once, against plain Casbin and every rule looked at.
//! Both decide the same questions by the same rules in the same minutes, and must agree on each of them.

use std::hint::black_box;
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::Args;
use platform_api::access::engine::Engine;
use platform_api::access::policy::Policy;
use platform_api::domain::ids::{PolicyId, UserId};
use platform_api::domain::organization::attributes::Attributes;
use platform_api::domain::organization::user::{Profile, User};
use platform_api::domain::organization::{Limits, Organization};
use platform_api::domain::policy::books::{Judge, PolicyBooks};
use platform_api::domain::policy::condition::Condition;
use platform_api::domain::policy::question::{Question, Relations, Said, Subject, Surroundings, Texts, Tuple};
use platform_api::domain::policy::set::PolicySet;
use platform_api::domain::policy::statement::{Effect, PolicyTerms, Subject as About};
use platform_api::domain::time::Timestamp;
use serde_json::json;
use tokio::time::Instant;

use crate::figures::Grid;

#[derive(Debug, Clone, Args)]
pub(crate) struct Authorize {
    /// Policies of the tenant, one step each.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 500, 1_000], value_parser = clap::value_parser!(u32).range(1..=2_000))]
    policies: Vec<u32>,
    /// Seconds for each step, half of them for each side.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=120))]
    seconds: u64,
}

/// Models that policies speak of and questions are about.
const MODELS: u32 = 20;
const NOW: Timestamp = Timestamp(1_763_650_000_000_000);
const LIMITS: Limits = Limits { users: 10, groups: 10, members: 10, role_assignments: 10 };

struct Nothing;

impl Relations for Nothing {
    fn holds(&self, _: &Tuple) -> Option<bool> {
        None
    }
}

pub(crate) fn run(authorize: &Authorize) -> anyhow::Result<()> {
    let profile =
        if cfg!(debug_assertions) { "a development build: only the ratio says anything" } else { "a release build" };
    println!("decisions, {profile}; ns each, one thread");
    let mut grid =
        Grid::new(&["policies", "cached", "first asked", "all rules, plain Casbin", "plain / cached", "allowed"]);
    for policies in &authorize.policies {
        grid.row(step(*policies, authorize.seconds)?);
    }
    grid.print();
    Ok(())
}

fn step(policies: u32, seconds: u64) -> anyhow::Result<Vec<String>> {
    let people = people()?;
    let set = set(policies, &people)?;
    let engine = Engine::new(set.clone())?;
    let (texts, said) = (surroundings(), Said::default());
    let models: Vec<String> = (0..MODELS).map(|model| format!("model-{model}")).collect();
    let user = people.users_after(None).next().context("a user")?;
    let question = |model: usize| {
        let mut subject = Subject::of_user(&people, user);
        subject.roles.push("developer");
        let resource_id = models.get(model).map(String::as_str);
        Question { subject, object: "model", action: "use", resource_id, said: &said, surroundings: &texts }
    };
    let questions: Vec<Question<'_>> = (0..models.len()).map(question).collect();

    // First asked: an engine that has decided nothing yet, for each question.
    let mut first = 0_u128;
    let mut allowed = 0;
    for question in &questions {
        let fresh = Engine::new(set.clone())?;
        let began = Instant::now();
        let decided = fresh.decide(question, &Nothing).allowed;
        first += began.elapsed().as_nanos();
        ensure!(decided == engine.decide_plainly(question, &Nothing), "both decide alike");
        ensure!(decided == engine.decide(question, &Nothing).allowed, "and again");
        allowed += usize::from(decided);
    }
    let half = std::time::Duration::from_millis(seconds * 500);
    let plain = measured(&questions, half, 1, |question| engine.decide_plainly(question, &Nothing));
    let cached = measured(&questions, half, 200, |question| engine.decide(question, &Nothing).allowed);
    Ok(vec![
        policies.to_string(),
        format!("{cached:.0}"),
        format!("{:.0}", first as f64 / questions.len() as f64),
        format!("{plain:.0}"),
        format!("{:.0}", plain / cached),
        format!("{allowed} of {}", questions.len()),
    ])
}

/// Nanoseconds of one decision.
fn measured(
    questions: &[Question<'_>],
    lasting: std::time::Duration,
    rounds: u32,
    decide: impl Fn(&Question<'_>) -> bool,
) -> f64 {
    let began = Instant::now();
    let mut count = 0_u64;
    while began.elapsed() < lasting {
        for _ in 0..rounds {
            for question in questions {
                black_box(decide(black_box(question)));
            }
        }
        count += u64::from(rounds) * questions.len() as u64;
    }
    began.elapsed().as_nanos() as f64 / count as f64
}

fn surroundings() -> Texts {
    let ip = Some(std::net::IpAddr::from([10, 1, 2, 3]));
    Surroundings { ip, on_behalf_of: None, time: NOW.to_string() }.into()
}

fn people() -> anyhow::Result<Organization> {
    let mut people = Organization::default();
    let attributes = json!({ "department": "finance", "level": 3 });
    let attributes = Attributes::read(attributes.as_object().context("an object")?);
    let attributes = attributes.map_err(|flaws| anyhow::anyhow!("{flaws:?}"))?;
    let profile = Profile { attributes, ..Profile::named("ada") };
    let id = UserId(platform_api::clock::new_id());
    let user = User { id, profile, version: 1, created_at: NOW, updated_at: NOW };
    people.put_user(user, &LIMITS).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
    Ok(people)
}

/// Policies as tenants write them: by role, with resources, every other one under a condition, one in ten denies.
fn set(policies: u32, people: &Organization) -> anyhow::Result<PolicySet> {
    let built_in = Arc::new(Policy::built_in()?.built_in_rights());
    let judge = Judge { built_in: &built_in, people };
    let mut books = PolicyBooks::default();
    for number in 0..policies {
        let role = ["developer", "analyst", "reader", "reporter", "admin"][number as usize % 5];
        let condition = match number % 4 {
            0 => Some(json!({"all": [
                {"attribute": "subject.department", "operator": "equals", "values": ["finance"]},
                {"attribute": "context.ip", "operator": "inNetwork", "values": ["10.0.0.0/8"]},
            ]})),
            2 => Some(json!({"attribute": "subject.level", "operator": "greaterThan", "values": [number % 7]})),
            _ => None,
        };
        let condition = condition.map(serde_json::from_value::<Condition>).transpose()?;
        let terms = PolicyTerms {
            name: format!("policy {number}"),
            description: String::new(),
            effect: if number % 10 == 9 { Effect::Deny } else { Effect::Allow },
            subjects: vec![About::Role(role.to_owned())],
            permissions: vec!["model:use".parse()?, format!("thing{}:read", number % 50).parse()?],
            resources: vec![format!("model/model-{}", number % MODELS).parse()?],
            condition,
            enabled: true,
        };
        let id = PolicyId(platform_api::clock::new_id());
        books.create_policy(id, terms, &judge, NOW).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
    }
    Ok(PolicySet::new(&books, built_in))
}
