//! Arguments in, exit code out. Everything else is in the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use platform_api::config::Config;
use platform_api::threads::Threads;
use platform_api::{command, daemon, demo, fault};

/// An event is many small texts, made on one thread and dropped on another: measured, the system's allocator costs more.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The governance plane of a multi-tenant LLM platform.
#[derive(Parser)]
#[command(version, about, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon. Without configuration: SQLite in ./data, port 8082, no NATS, no Redis.
    Serve(Configured),
    /// Show the main job on the embedded database, with captured LiteLLM payloads, and keep serving.
    Demo {
        /// End when the show is over, with status 0 if everything held.
        #[arg(long)]
        exit: bool,
        /// Where to listen.
        #[arg(long, default_value = "127.0.0.1:8082")]
        listen: String,
    },
    /// Bring the control database and every tenant's database to this program's schema.
    Migrate(Configured),
    /// Work on audit chains.
    Audit {
        #[command(subcommand)]
        command: Audit,
    },
    /// Look into a Kong, or print what it should be told.
    Kong {
        #[command(subcommand)]
        command: Kong,
    },
    /// Print the OpenAPI document.
    Openapi,
    /// Read and validate the configuration, naming every problem.
    CheckConfig(Configured),
}

#[derive(Subcommand)]
enum Audit {
    /// Recompute chains from their first record; names the first broken link and ends with status 1 if there is one.
    Verify {
        #[command(flatten)]
        configured: Configured,
        /// One tenant's chain; all tenants' and the platform's when absent.
        #[arg(long)]
        tenant: Option<String>,
    },
}

#[derive(Subcommand)]
enum Kong {
    /// Name whatever in this Kong makes a guarantee void: ends with status 0 when nothing does, 1 when something does, 2
    /// when Kong cannot be asked.
    Check {
        #[command(flatten)]
        configured: Configured,
        /// Base URL of the Admin API; each of `gateway.kong.admin.urls` when absent.
        #[arg(long, value_name = "URL")]
        admin_url: Option<String>,
        /// Where http-log has to send to, exactly; any address that ends in /v1/gateway/kong/logs when absent.
        #[arg(long, value_name = "URL")]
        logs_url: Option<String>,
        /// Print findings as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the declarative document, in JSON, for a Kong without a database: `gateway.kong.admin.base_file` with the tenants added.
    Render(Configured),
}

#[derive(clap::Args)]
struct Configured {
    /// Configuration file (TOML). Environment variables PLATFORM_API__<SECTION>__<KEY> override it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Configured {
    fn load(&self) -> anyhow::Result<Config> {
        Ok(Config::load(self.config.as_deref())?)
    }
}

fn main() -> ExitCode {
    fault::arm();
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("platform-api: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    // One provider of cryptography for TLS, chosen before anything speaks it. A second choice would be refused; this
    // is the first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let threads = Threads::start()?;
    match command {
        Command::Openapi => {
            print!("{}", platform_api::http::openapi_document());
            Ok(ExitCode::SUCCESS)
        }
        Command::CheckConfig(configured) => {
            let problems = platform_api::outlet::problems(&configured.load()?);
            if !problems.is_empty() {
                anyhow::bail!(platform_api::config::Invalid { problems });
            }
            println!("the configuration is valid");
            Ok(ExitCode::SUCCESS)
        }
        Command::Serve(configured) => {
            let config = configured.load()?;
            threads.run(daemon::serve(config, threads.answering()))??;
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo { exit, listen } => threads.run(demo::run(exit, listen, threads.answering()))?,
        Command::Migrate(configured) => {
            let config = configured.load()?;
            threads.run(command::migrate(config))??;
            Ok(ExitCode::SUCCESS)
        }
        Command::Kong { command: Kong::Check { configured, admin_url, logs_url, json } } => {
            let config = configured.load()?;
            threads.run(command::check_kong(config, admin_url, logs_url, json))?
        }
        Command::Kong { command: Kong::Render(configured) } => {
            let config = configured.load()?;
            threads.run(command::render_kong(config))??;
            Ok(ExitCode::SUCCESS)
        }
        Command::Audit { command: Audit::Verify { configured, tenant } } => {
            let config = configured.load()?;
            threads.run(command::verify(config, tenant))?
        }
    }
}
