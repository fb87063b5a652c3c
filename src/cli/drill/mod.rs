//! `fusebox drill`: proves that a plan of the configuration can trigger, on doubles of its upstreams inside this process.

mod double;
mod run;
mod sample;

use std::path::PathBuf;
use std::sync::Arc;

use super::{FAILED, OK, UNUSABLE, print_bytes, say};
use crate::config::{self, Compiled, Overrides};
use crate::dialect::table::Family;
use crate::enforce::policy::Upstream;
use crate::incident::rule::{Approval, RollbackBy, Step, StepKind};
use crate::types::ids::UpstreamName;
use run::{Scene, Way};

/// Arguments of `fusebox drill`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An upstream with a `failover` list, or an action with a `reroute` step.
    name: String,
    /// The configuration file.
    #[arg(long, short, env = "FUSEBOX_CONFIG")]
    config: PathBuf,
}

pub(super) fn run(args: &Args) -> u8 {
    let compiled = match config::load(Some(&args.config), &Overrides::default()) {
        Ok(compiled) => compiled,
        Err(problems) => {
            say(&problems.to_string());
            return UNUSABLE;
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            say(&format!("error: cannot start: {e}"));
            return FAILED;
        }
    };
    match runtime.block_on(Box::pin(drill(&compiled, &args.name))) {
        Ok(report) => print_bytes(report.text.as_bytes()).max(if report.good { OK } else { FAILED }),
        Err(why) => {
            say(&format!("error: {why}"));
            UNUSABLE
        }
    }
}

/// What a drill showed.
#[derive(Debug)]
struct Report {
    text: String,
    good: bool,
}

impl Report {
    fn line(&mut self, ok: bool, what: &str, detail: &str) {
        let word = if ok { "ok  " } else { "FAIL" };
        self.text.push_str(&format!("  {word}  {what:<34} {detail}\n"));
        self.good &= ok;
    }

    fn remark(&mut self, text: &str) {
        self.text.push_str(&format!("  note  {text}\n"));
    }
}

/// Drills the plan of this name.
///
/// # Errors
/// One line for a person when there is no such plan.
async fn drill(compiled: &Compiled, name: &str) -> Result<Report, String> {
    let upstreams = &compiled.policy.upstreams;
    if let Some(first) = upstreams.iter().find(|u| u.name.as_str() == name) {
        return failover(compiled, first).await;
    }
    let action = compiled.rulebook.actions.iter().find(|(n, _)| n.as_str() == name);
    let Some((_, action)) = action else {
        let with_plan: Vec<&str> = upstreams
            .iter()
            .filter(|u| !u.failover.is_empty())
            .map(|u| u.name.as_str())
            .collect();
        return Err(format!(
            "there is no upstream and no action `{name}`; upstreams with a failover list: {}",
            if with_plan.is_empty() {
                "none".to_owned()
            } else {
                with_plan.join(", ")
            }
        ));
    };
    let steps: Vec<(&Step, &UpstreamName)> = action
        .steps
        .iter()
        .filter_map(|s| Some((s, target(s)?)))
        .collect();
    if steps.is_empty() {
        return Err(format!(
            "action `{name}` has no reroute step: there is nothing to drill"
        ));
    }
    reroute(compiled, name, &steps).await
}

fn target(step: &Step) -> Option<&UpstreamName> {
    match &step.kind {
        StepKind::Reroute { to }
        | StepKind::Rollback {
            by: RollbackBy::Reroute { to },
        } => Some(to),
        _ => None,
    }
}

/// Every configured way to fail, for every upstream of the plan that may be reached by it.
async fn failover(compiled: &Compiled, first: &Arc<Upstream>) -> Result<Report, String> {
    let upstreams = &compiled.policy.upstreams;
    let mut plan = vec![Arc::clone(first)];
    for name in &first.failover {
        plan.extend(upstreams.iter().find(|u| u.name == *name).cloned());
    }
    if plan.len() < 2 {
        return Err(format!(
            "upstream `{}` has no failover list: nothing stands in for it; name other upstreams in `failover`",
            first.name
        ));
    }
    let names: Vec<&str> = plan.iter().map(|u| u.name.as_str()).collect();
    let mut report = Report {
        text: format!(
            "failover {} (on doubles; nothing leaves this machine)\n",
            names.join(" → ")
        ),
        good: true,
    };
    let Some(family) = common(&plan) else {
        report.line(false, "dialect", "these upstreams serve no dialect in common");
        return Ok(report);
    };
    remarks(&mut report, upstreams, first, family);
    for way in Way::of(first, sample::streams(family)) {
        for reached in 1..plan.len() {
            let (before, target) = (plan.get(..reached).unwrap_or_default(), plan.get(reached));
            let Some(target) = target else { continue };
            // Each goes on by its own `retry_on`.
            if !before.iter().all(|u| way.counts_for(u)) {
                report.remark(&format!(
                    "{way} does not go on to {}: an upstream before it does not count it as a failure",
                    target.name
                ));
                break;
            }
            let scene = Scene::failing(compiled, &plan, reached, way, family).await?;
            let result = scene.play(target.name.as_str()).await;
            let path: Vec<&str> = before.iter().chain([target]).map(|u| u.name.as_str()).collect();
            let detail = match &result {
                Ok(()) => path.join(" → "),
                Err(why) => format!("{}: {why}", path.join(" → ")),
            };
            report.line(result.is_ok(), &way.to_string(), &detail);
        }
    }
    breaker(&mut report, compiled, &plan, family).await?;
    Ok(report)
}

async fn breaker(
    report: &mut Report,
    compiled: &Compiled,
    plan: &[Arc<Upstream>],
    family: Family,
) -> Result<(), String> {
    let Some(first) = plan.first() else { return Ok(()) };
    let Some(breaker) = first.breaker else {
        report.remark(&format!(
            "{} has no breaker: in an outage each request pays for the failed attempt",
            first.name
        ));
        return Ok(());
    };
    let Some(way) = Way::of(first, false).into_iter().next() else {
        return Ok(());
    };
    const MOST: u32 = 50;
    if breaker.failures > MOST {
        report.remark(&format!(
            "the breaker opens after {} failures, which is not tried",
            breaker.failures
        ));
        return Ok(());
    }
    let scene = Scene::failing(compiled, plan, 1, way, family).await?;
    let result = scene.opens(breaker.failures).await;
    let what = format!("breaker after {} failures", breaker.failures);
    report.line(
        result.is_ok(),
        &what,
        &result.err().unwrap_or_else(|| "left alone".to_owned()),
    );
    Ok(())
}

/// What would keep the plan from being of use though it can trigger.
fn remarks(report: &mut Report, upstreams: &[Arc<Upstream>], first: &Upstream, family: Family) {
    let before = upstreams
        .iter()
        .take_while(|u| u.name != first.name)
        .find(|u| u.serves(family));
    if let (Some(before), None) = (before, &first.path_prefix) {
        report.remark(&format!(
            "requests go to {} by themselves, which serves the same dialect and stands before {}",
            before.name, first.name
        ));
    }
    let on = &first.retry_on;
    let first_byte = on.first_byte_within.unwrap_or(first.timeouts.first_byte);
    if on.first_byte_timeout && first_byte.as_secs() > 60 {
        report.remark(&format!(
            "timeouts.first_byte is {} s: clients may have left before {} is given up (shortened for the drill)",
            first_byte.as_secs(),
            first.name
        ));
    }
}

/// What each reroute step does to requests for the other upstreams.
async fn reroute(
    compiled: &Compiled,
    action: &str,
    steps: &[(&Step, &UpstreamName)],
) -> Result<Report, String> {
    let mut report = Report {
        text: format!("action {action} (on doubles; nothing leaves this machine)\n"),
        good: true,
    };
    let upstreams = &compiled.policy.upstreams;
    for (step, to) in steps {
        if step.approval == Approval::Required {
            report.remark(&format!(
                "the step to {to} waits for a human (approval: required); the drill agrees to it"
            ));
        }
        let Some(target) = upstreams.iter().find(|u| u.name == **to) else {
            report.line(false, "reroute", &format!("there is no upstream `{to}`"));
            continue;
        };
        let mut any = false;
        for from in upstreams.iter().filter(|u| u.name != target.name) {
            let pair = [Arc::clone(from), Arc::clone(target)];
            let path = format!("{} → {to}", from.name);
            let Some(family) = common(&pair) else {
                report.remark(&format!(
                    "{path}: no dialect in common, such requests stay where they are"
                ));
                continue;
            };
            any = true;
            let scene = Scene::rerouted(compiled, &pair, step, family).await?;
            let result = scene.wait_for(to.as_str()).await;
            report.line(
                result.is_ok(),
                "reroute",
                &match result {
                    Ok(()) => path,
                    Err(why) => format!("{path}: {why}"),
                },
            );
        }
        if !any {
            report.line(
                false,
                "reroute",
                &format!("no other upstream speaks a dialect of {to}: the step does nothing"),
            );
        }
    }
    Ok(report)
}

/// A dialect that all of them serve.
fn common(upstreams: &[Arc<Upstream>]) -> Option<Family> {
    sample::FAMILIES.into_iter().find(|f| {
        upstreams
            .iter()
            .all(|u| u.families.is_empty() || u.families.contains(f))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enforce::failover::{RetryBudget, RetryOn};

    fn compiled(change: impl FnOnce(&mut Compiled)) -> Compiled {
        let text = "upstreams:\n  - {name: a, url: \"http://a.invalid\"}\n  - {name: b, url: \"http://b.invalid/v1\"}\n";
        let mut compiled = config::compile("test", text, &Overrides::default(), &|_| None).unwrap();
        let all = &mut compiled.policy.upstreams;
        for upstream in all.iter_mut() {
            Arc::make_mut(upstream).families = Vec::new();
        }
        Arc::make_mut(all.first_mut().unwrap()).failover = vec!["b".into()];
        change(&mut compiled);
        compiled
    }

    fn told(compiled: &Compiled, name: &str) -> Result<Report, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(Box::pin(drill(compiled, name)))
    }

    fn edit(compiled: &mut Compiled, change: impl FnOnce(&mut Upstream)) {
        change(Arc::make_mut(compiled.policy.upstreams.first_mut().unwrap()));
    }

    #[test]
    fn a_plan_that_works_is_shown_to_work_in_every_way() {
        let report = told(&compiled(|_| {}), "a").unwrap();
        assert!(report.good, "{}", report.text);
        for way in [
            "connect_error",
            "status 502",
            "status 503",
            "status 504",
            "status 529",
            "first_byte_timeout",
            "first_event_error",
            "breaker after 5 failures",
        ] {
            assert!(
                report.text.contains(&format!("ok    {way} ")),
                "{way} in\n{}",
                report.text
            );
        }
    }

    #[test]
    fn a_plan_that_cannot_trigger_is_told() {
        let no_budget = compiled(|c| {
            c.policy.retries = RetryBudget {
                percent: 0.0,
                min_per_minute: 0,
            };
        });
        let report = told(&no_budget, "a").unwrap();
        assert!(!report.good && report.text.contains("budget"), "{}", report.text);
        let other = compiled(|c| edit(c, |a| a.families = vec![Family::Anthropic]));
        let apart = compiled(|c| {
            edit(c, |a| a.families = vec![Family::Anthropic]);
            let b = c.policy.upstreams.last_mut().unwrap();
            Arc::make_mut(b).families = vec![Family::OpenAi];
        });
        assert!(told(&other, "a").unwrap().good);
        assert!(!told(&apart, "a").unwrap().good);
        let alone = compiled(|c| edit(c, |a| a.failover = Vec::new()));
        assert!(told(&alone, "a").unwrap_err().contains("no failover list"));
        let nothing = compiled(|c| edit(c, |a| a.retry_on = RetryOn::NOTHING));
        assert!(!told(&nothing, "a").unwrap().good, "nothing counts as a failure");
        assert!(
            told(&alone, "x")
                .unwrap_err()
                .contains("no upstream and no action `x`")
        );
        assert!(
            told(&alone, "throttle_and_alert")
                .unwrap_err()
                .contains("no reroute step")
        );
    }

    #[test]
    fn a_reroute_is_shown_to_happen() {
        let with = |to: &str| {
            let step = Step::new(
                StepKind::Reroute { to: to.into() },
                std::time::Duration::from_secs(60),
            );
            compiled(|c| {
                let mut book = (*c.rulebook).clone();
                book.actions
                    .insert("away".into(), crate::incident::rule::Action { steps: vec![step] });
                c.rulebook = Arc::new(book);
            })
        };
        let report = told(&with("b"), "away").unwrap();
        assert!(report.good && report.text.contains("a → b"), "{}", report.text);
        assert!(report.text.contains("waits for a human"), "{}", report.text);
        assert!(!told(&with("c"), "away").unwrap().good);
    }
}
