//! `fusebox status`: what a running fusebox is doing.

use super::admin_client::Admin;
use super::{FAILED, print_bytes, say};

/// Arguments of `fusebox status`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: Admin,
    /// How to show it.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

pub(super) fn run(args: &Args) -> u8 {
    let accept = match args.output {
        Output::Text => "text/plain",
        Output::Json => "application/json",
    };
    match args.admin.ask(http::Method::GET, "/status", accept) {
        Ok(answered) if answered.status == 200 => {
            let mut screen = answered.body;
            if !screen.ends_with(b"\n") {
                screen.push(b'\n');
            }
            print_bytes(&screen)
        }
        Ok(answered) => {
            say(&format!("error: {}", answered.problem()));
            FAILED
        }
        Err(why) => {
            say(&format!("error: {why}"));
            FAILED
        }
    }
}
