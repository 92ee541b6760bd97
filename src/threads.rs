//! The daemon's threads: a runtime that works, and one that answers.
//!
//! A decision takes microseconds, and a gateway waits for it in its own request path; reading a full pull or encoding a
//! full commit takes milliseconds. On one runtime a decision lands behind the latter now and then. So connections and
//! decisions have threads of their own, and where threads outnumber cores those of everything else step back.

use std::future::Future;
use std::io;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

/// How far the working threads step back: on Linux's scale of niceness, to a tenth of an answering thread's share.
const NICENESS: i32 = 10;

/// Both runtimes. They end when this is dropped, which only a thread of neither may do.
#[derive(Debug)]
pub struct Threads {
    work: Runtime,
    answer: Runtime,
}

impl Threads {
    /// Starts them. To be called by a thread that has not stepped back itself: its threads inherit that.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn start() -> io::Result<Threads> {
        Ok(Threads {
            answer: Builder::new_multi_thread().enable_all().thread_name("answer").build()?,
            work: Builder::new_multi_thread().enable_all().thread_name("work").on_thread_start(step_back).build()?,
        })
    }

    /// Where connections are served.
    #[must_use]
    pub fn answering(&self) -> Handle {
        self.answer.handle().clone()
    }

    /// Runs `task` on the working threads and waits for its end. It is spawned: a future on the root of a runtime is
    /// woken at several times the cost.
    ///
    /// # Errors
    /// When the task panicked.
    pub fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> io::Result<T> {
        Ok(self.work.block_on(self.work.spawn(task))?)
    }
}

/// Runs `task` on another runtime's threads while its caller waits here. A caller that stops waiting ends it, and its
/// panic is the caller's. `None` when that runtime has ended.
pub async fn elsewhere<T: Send + 'static>(
    runtime: &Handle,
    task: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    match AbortOnDropHandle::new(runtime.spawn(task.in_current_span())).await {
        Ok(done) => Some(done),
        Err(ended) => ended.try_into_panic().map(|panic| std::panic::resume_unwind(panic)).ok(),
    }
}

/// Prefers others to this thread and to those it starts. Where the system refuses, threads share as they would have.
fn step_back() {
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS);
}
