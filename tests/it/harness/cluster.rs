//! A PostgreSQL cluster of a test's own, to be killed, stopped and brought
//! back.

use std::{
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A running cluster, gone with its data when dropped.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    pub url: String,
}

impl Cluster {
    pub async fn start() -> Self {
        let number = NUMBER.fetch_add(1, Relaxed);
        let name = format!("countersign-cluster-{}-{number}", std::process::id());
        let mut cluster = Self {
            // Not within a private folder: the server may have a user of its own.
            folder: std::env::temp_dir().join(name),
            url: String::new(),
        };
        cluster.url = cluster.run(&["start"]).await;
        cluster
    }

    /// Ends every process at once, without a word.
    pub async fn kill(&self) {
        self.run(&["signal", "KILL"]).await;
    }

    /// Starts it again, where it was.
    pub async fn restart(&self) {
        assert_eq!(self.run(&["start"]).await, self.url);
    }

    /// Halts every process: connections stay, nobody answers.
    pub async fn stop(&self) {
        self.run(&["signal", "STOP"]).await;
    }

    /// Lets every process go on.
    pub async fn cont(&self) {
        self.run(&["signal", "CONT"]).await;
    }

    async fn run(&self, arguments: &[&str]) -> String {
        let mut command = self.command(arguments);
        let ran = tokio::task::spawn_blocking(move || command.output()).await;
        let output = ran.expect("no panic").expect("scripts/postgres");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        let url = String::from_utf8(output.stdout).expect("text");
        url.trim().to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/postgres");
        let mut command = Command::new(script);
        command.args(arguments).arg(&self.folder);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.command(&["remove"]).output().ok();
    }
}
