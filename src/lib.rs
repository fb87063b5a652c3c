//! fusebox: a sidecar reverse proxy between AI agents and LLM APIs that does incident response on the traffic itself.
#![doc = include_str!("ARCHITECTURE.md")]

pub mod types;

pub mod clock;
pub mod dialect;
pub mod incident;
pub mod telemetry;
pub mod tls;

pub mod enforce;
pub mod proxy;

pub mod alert;
pub mod control;
pub mod store;

pub mod config;

pub mod admin;
pub mod app;
pub mod cli;
