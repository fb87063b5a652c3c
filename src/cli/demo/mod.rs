//! `fusebox demo`: an incident from its beginning to its end, on a simulated provider inside this process.

mod agents;
mod catalog;
mod chart;
mod client;
mod ending;
mod figures;
mod filler;
mod hearing;
mod ledger;
mod plan;
mod provider;
mod receiver;
mod scenario;
mod scene;
mod setup;
mod stage;
mod story;
mod stream;
mod timeline;
mod trace;
mod watch;
mod weather;
mod wire;

use std::path::PathBuf;

use super::{FAILED, UNUSABLE, say};
use scenario::Scenario;
use stage::Stage;

pub use ledger::Bill;
pub use provider::Provider;

/// Arguments of `fusebox demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What happens: token-explosion, upstream-outage, runaway-loop, latency-creep or bad-deploy.
    #[arg(long, value_name = "NAME", default_value = "token-explosion", value_parser = Scenario::parse)]
    scenario: Scenario,
    /// Replay this trace as the background traffic: CSV, plain or packed with gzip, with the columns
    /// `t_ms,input_tokens,output_tokens` or `TIMESTAMP,ContextTokens,GeneratedTokens` (Azure LLM inference traces).
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Leave everything running after the summary, until Ctrl-C.
    #[arg(long)]
    keep_running: bool,
    /// Another seed gives other texts, lengths and times.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How many times faster than real models the simulated ones answer (1 to 50).
    #[arg(long, value_name = "N", default_value_t = 4.0, value_parser = speed)]
    speed: f64,
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if (1.0..=50.0).contains(&speed) => Ok(speed),
        _ => Err("expected a number from 1 to 50".to_owned()),
    }
}

pub(super) fn run(args: &Args) -> u8 {
    if args.scenario != Scenario::TokenExplosion && args.trace.is_some() {
        say("error: --trace is for the scenario token-explosion: the others make their own traffic");
        return UNUSABLE;
    }
    let traffic = match stage::Traffic::new(args.trace.as_deref(), args.seed) {
        Ok(traffic) => traffic,
        Err(why) => {
            say(&format!("error: {why}"));
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
    let told = runtime.block_on(Box::pin(async {
        if let Some(scene) = args.scenario.scene() {
            return Box::pin(scene::play(scene, args.seed, args.speed, args.keep_running)).await;
        }
        let stage = Stage::build(traffic, args.seed, args.speed).await?;
        Ok::<u8, String>(Box::pin(story::tell(stage, args.keep_running)).await)
    }));
    told.unwrap_or_else(|why| {
        say(&format!("error: {why}"));
        FAILED
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_bounded() {
        for (text, good) in [
            ("1", true),
            ("0.5", false),
            ("51", false),
            ("0", false),
            ("x", false),
            ("nan", false),
        ] {
            assert_eq!(speed(text).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn a_trace_that_cannot_be_read_is_a_wrong_argument() {
        let args = Args {
            scenario: Scenario::TokenExplosion,
            trace: Some(PathBuf::from("/nonexistent/trace.csv")),
            keep_running: false,
            seed: 1,
            speed: 4.0,
        };
        assert_eq!(run(&args), UNUSABLE);
    }
}
