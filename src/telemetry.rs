//! Logs, traces and metrics of the process, set up once.
//!
//! Logs go to standard error: JSON, or in a terminal something readable. The
//! level can change while the process runs: it is read again on SIGHUP (see
//! [`Telemetry::follow_hangups`]). Traces are exported over OTLP if an endpoint
//! is set. Metrics are kept for `/metrics`.
//!
//! All three belong to the process, not to one server in it: setting up twice
//! changes nothing, and returns what is there.

use std::{
    io::{self, IsTerminal as _},
    panic,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use metrics_exporter_prometheus::PrometheusHandle;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, Targets},
    fmt::{self, writer::BoxMakeWriter},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

mod levels;
pub mod metric;
mod span_fields;

pub use levels::Unreadable;

use levels::Levels;
use span_fields::SpanFields;

/// The recorder puts what was measured into its histograms this often.
const UPKEEP: Duration = Duration::from_secs(5);

/// The name of the service in traces.
const SERVICE: &str = "countersign";

static INSTALLED: Mutex<Option<Telemetry>> = Mutex::new(None);

/// `[telemetry]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What is logged: `info`, or by target, `info,countersign::access=warn`.
    pub level: String,
    /// How it looks.
    pub format: Format,
    /// Where traces go: the gRPC address of an OTLP collector,
    /// `http://127.0.0.1:4317`. Empty: nowhere.
    pub otlp_endpoint: String,
    /// One of so many good validations has a line in the access log.
    pub validation_log_sample: u32,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text in a terminal, else JSON.
    Auto,
    /// An object on each line.
    Json,
    /// For people.
    Text,
}

/// Telemetry that is set up. Copies are cheap.
#[derive(Debug, Clone)]
pub struct Telemetry {
    levels: Levels,
    metrics: PrometheusHandle,
    traces: Option<SdkTracerProvider>,
}

/// Why telemetry cannot be set up, or a level not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No list of levels and targets.
    #[error("\"{level}\" is no log level")]
    Level {
        /// As given.
        level: String,
        /// Why.
        source: Unreadable,
    },
    /// Something else in the process has taken the place of the logger.
    #[error("the log is already somewhere else")]
    Log(#[source] tracing_subscriber::util::TryInitError),
    /// The same for metrics.
    #[error("the metrics cannot be set up")]
    Metrics(#[source] metrics_exporter_prometheus::BuildError),
    /// The exporter of traces does not start.
    #[error("traces cannot be exported to {endpoint}")]
    Traces {
        /// As configured.
        endpoint: String,
        /// Why.
        source: opentelemetry_otlp::ExporterBuildError,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: Format::Auto,
            otlp_endpoint: String::new(),
            validation_log_sample: 100,
        }
    }
}

impl Config {
    /// Checks the values.
    ///
    /// # Errors
    ///
    /// What is wrong with each key, and how to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        if levels::parse(&self.level).is_err() {
            problems.push(format!(
                "telemetry.level is \"{}\"; set it to error, warn, info, debug or trace, or to a \
                 list such as \"info,countersign::access=warn\"",
                self.level
            ));
        }
        // The exporter speaks no TLS: a collector is a neighbour.
        if !self.otlp_endpoint.is_empty() && !self.otlp_endpoint.starts_with("http://") {
            problems.push(format!(
                "telemetry.otlp_endpoint is \"{}\"; write it as \"http://127.0.0.1:4317\", or \
                 leave it empty",
                self.otlp_endpoint
            ));
        }
        if self.validation_log_sample == 0 {
            problems.push(
                "telemetry.validation_log_sample is 0; set it to 1 to log each good validation, \
                 to 100 to log one of a hundred"
                    .into(),
            );
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    /// Whether spans are exported.
    pub fn exports_traces(&self) -> bool {
        !self.otlp_endpoint.is_empty()
    }

    fn is_json(&self) -> bool {
        match self.format {
            Format::Auto => !io::stderr().is_terminal(),
            Format::Json => true,
            Format::Text => false,
        }
    }
}

impl Telemetry {
    /// Sets up logs, traces and metrics for the process. Within a tokio runtime
    /// if traces are exported.
    ///
    /// # Errors
    ///
    /// The level or the exporter cannot be used, or another logger is there.
    pub fn install(config: &Config) -> Result<Self, Error> {
        Self::install_to(config, BoxMakeWriter::new(io::stderr))
    }

    /// Like [`install`](Self::install), with the log going to `writer`.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn install_to(config: &Config, writer: BoxMakeWriter) -> Result<Self, Error> {
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(installed) = &*installed {
            return Ok(installed.clone());
        }
        let traces = config
            .exports_traces()
            .then(|| exporter(config))
            .transpose()?;
        let levels = Levels::new(parse(&config.level)?);
        let lines = fmt::layer().with_writer(writer);
        let lines = if config.is_json() {
            // The span has the ids; it is the only one a call is in.
            lines
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .fmt_fields(SpanFields)
                .boxed()
        } else {
            lines.with_ansi(io::stderr().is_terminal()).boxed()
        };
        let spans = traces.as_ref().map(|traces| {
            // Our own calls only: the exporter makes calls itself.
            let ours = Targets::new().with_target(SERVICE, LevelFilter::INFO);
            tracing_opentelemetry::layer()
                .with_tracer(traces.tracer(SERVICE))
                .with_filter(ours)
        });
        let metrics = metric::builder()
            .and_then(metrics_exporter_prometheus::PrometheusBuilder::install_recorder)
            .map_err(Error::Metrics)?;
        metric::describe();
        tracing_subscriber::registry()
            .with(levels.clone())
            .with(lines)
            .with(spans)
            .try_init()
            .map_err(Error::Log)?;
        let telemetry = Self {
            levels,
            metrics,
            traces,
        };
        *installed = Some(telemetry.clone());
        Ok(telemetry)
    }

    /// What `/metrics` shows.
    pub fn metrics(&self) -> PrometheusHandle {
        self.metrics.clone()
    }

    /// Changes what is logged from now on.
    ///
    /// # Errors
    ///
    /// It is no log level; the one in force stays.
    pub fn set_level(&self, level: &str) -> Result<(), Error> {
        self.levels.set(parse(level)?);
        Ok(())
    }

    /// Keeps the metrics tidy until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(UPKEEP);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            self.metrics.run_upkeep();
        }
    }

    /// Reads the level again on each SIGHUP until shutdown. `read` gives what
    /// the configuration says now, or none if it cannot be read.
    ///
    /// # Errors
    ///
    /// The process cannot listen to signals.
    pub async fn follow_hangups(
        self,
        read: impl Fn() -> Option<String> + Send,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let mut hangups = signal(SignalKind::hangup())?;
        while let Some(Some(())) = shutdown.run_until_cancelled(hangups.recv()).await {
            let Some(level) = read() else { continue };
            match self.set_level(&level) {
                Ok(()) => tracing::warn!(level, "the log level was read again"),
                Err(error) => {
                    let cause = crate::error::chain(&error);
                    tracing::error!(cause, "the log level stays");
                }
            }
        }
        Ok(())
    }

    /// Sends the traces that have not been sent, for a while at most.
    pub async fn flush(&self) {
        if let Some(traces) = &self.traces {
            flush(traces.clone()).await;
        }
    }
}

async fn flush(traces: SdkTracerProvider) {
    // It blocks until this runtime has sent them, which may have one thread.
    let sending = move || traces.shutdown_with_timeout(Duration::from_secs(2));
    let outcome = tokio::task::spawn_blocking(sending).await;
    if let Ok(Err(error)) = outcome {
        tracing::warn!(%error, "the last traces were not exported");
    }
}

fn parse(level: &str) -> Result<Targets, Error> {
    levels::parse(level).map_err(|source| Error::Level {
        level: level.to_owned(),
        source,
    })
}

fn exporter(config: &Config) -> Result<SdkTracerProvider, Error> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&config.otlp_endpoint)
        .build()
        .map_err(|source| Error::Traces {
            endpoint: config.otlp_endpoint.clone(),
            source,
        })?;
    Ok(SdkTracerProvider::builder()
        .with_resource(Resource::builder().with_service_name(SERVICE).build())
        .with_batch_exporter(exporter)
        .build())
}

/// Logs panics instead of printing them, for the rest of the process's life. The
/// hook runs where the panic is, so the line carries the ids of the call.
pub fn log_panics() {
    panic::set_hook(Box::new(|info| {
        let what = info.payload_as_str().unwrap_or_default();
        let place = info.location().map(tracing::field::display);
        tracing::error!(what, place, "panicked");
    }));
}

#[cfg(test)]
mod tests;
