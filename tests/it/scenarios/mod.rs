//! Runs every file of `tests/scenarios` through the engine: what is seen and done, second by second, and what must come of it.

mod expect;
mod script;
mod steps;
mod world;

use std::path::{Path, PathBuf};

use self::script::{Doing, Scenario};
use self::world::World;

/// Scenarios that there have to be at least: one for each lesson about incidents, failover, approvals and alerts.
const AT_LEAST: usize = 40;

#[test]
fn every_scenario_comes_out_as_told() {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios"))
            .expect("tests/scenarios")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|e| e == "json"))
            .collect();
    files.sort();
    assert!(files.len() >= AT_LEAST, "{} scenarios", files.len());
    let failures: Vec<String> = files.iter().filter_map(|file| run(file).err()).collect();
    assert!(
        failures.is_empty(),
        "{} of {} scenarios came out otherwise:\n\n{}",
        failures.len(),
        files.len(),
        failures.join("\n")
    );
}

/// A runner that finds fault with nothing would be worth nothing.
#[test]
fn a_scenario_can_fail() {
    let text = r#"{"title": "t", "lesson": "l", "config": "alerts: []",
        "timeline": [{"at": "5s", "expect": {"open": 1, "directives": {"a": ["contain"]}}}]}"#;
    let scenario: Scenario = serde_json::from_str(text).expect("a scenario");
    let failure = play(&scenario).expect_err("nothing was seen, so nothing is open");
    for part in ["at 5s", "open: expected 1, is 0", "directives of a"] {
        assert!(failure.contains(part), "{part}\n{failure}");
    }
    let unknown = text.replace("\"open\"", "\"opne\"");
    assert!(
        serde_json::from_str::<Scenario>(&unknown).is_err(),
        "a slip of the pen is an error"
    );
}

fn run(file: &Path) -> Result<(), String> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let text = std::fs::read_to_string(file).expect("a file");
    let scenario: Scenario =
        serde_json::from_str(&text).map_err(|e| format!("{name}: cannot be read: {e}"))?;
    if scenario.title.is_empty() || scenario.lesson.len() < 20 {
        return Err(format!("{name}: says neither what it is about nor why"));
    }
    play(&scenario).map_err(|why| format!("{name}: {}\n{why}", scenario.title))
}

fn play(scenario: &Scenario) -> Result<(), String> {
    let mut world = World::new(&scenario.config)?;
    let mut doings = script::unrolled(&scenario.timeline)?;
    let end = doings.last().map_or(0, |(at, _)| *at);
    let mut rest = doings.drain(..).peekable();
    let mut checked = 0;
    for second in 0..=end.div_ceil(1000) {
        world.tick(second * 1000);
        while let Some((at, doing)) = rest.next_if(|(at, _)| *at < (second + 1) * 1000) {
            world.pass_to(at);
            let place = || format!("  at {}", script::shown(at));
            match doing {
                Doing::Expect(expectation) => {
                    checked += 1;
                    let wrong = expect::compare(&expectation, &mut world);
                    if !wrong.is_empty() {
                        return Err(format!(
                            "{}:\n    {}\n{}",
                            place(),
                            wrong.join("\n    "),
                            world.picture()
                        ));
                    }
                }
                other => world
                    .does(other)
                    .map_err(|why| format!("{}: {why}\n{}", place(), world.picture()))?,
            }
        }
    }
    if checked == 0 {
        return Err("  expects nothing".to_owned());
    }
    Ok(())
}
