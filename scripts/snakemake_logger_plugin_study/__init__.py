"""What a person sees of a study (snakemake --logger study): a line for each job that ends, a bar for each stage on a
terminal, and of a job that fails the end of its log. Snakemake finds this module by its name."""

import logging
import re
import sys
import textwrap
import time
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from tqdm import tqdm

STAGE_OF_RULE = {
    "represent": "compare",
    "compare_further": "compare",
    "extract": "probes",
    "agreement": "probes",
    "notebook": "figures",
    "report": "figures",
}
SILENT = ("all", "same_images", "link")
REPEATED = (
    "RuleException",
    "Exiting because a job execution failed",
    "At least one job did not complete",
    "Cannot restore",
)
TAIL = 15  # lines of a failed job's log


def _said_already(record: logging.LogRecord) -> bool:
    """Whether a message repeats that a job failed."""
    text = record.getMessage()
    return getattr(record, "exception", "") == "RuleException" or any(word in text for word in REPEATED)


class LogHandler(LogHandlerBase):
    """Prints to the standard error; the commands of a dry run to the standard output."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        self.jobs: dict[int, tuple[str, str, str, float]] = {}  # id -> stage, name, log, when it began
        self.total: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self.began: dict[str, float] = {}
        self.bars: dict[str, tqdm] = {}
        self.failed: list[str] = []

    def say(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        handler = {
            LogEvent.RUN_INFO: self.plan,
            LogEvent.JOB_INFO: self.start,
            LogEvent.JOB_FINISHED: self.finish,
            LogEvent.JOB_ERROR: self.fail,
        }.get(event)
        if handler is not None:
            handler(record)
        elif record.levelno >= logging.WARNING and not _said_already(record):
            self.say(record.getMessage())

    def plan(self, record: logging.LogRecord) -> None:
        for rule, count in record.stats.items():
            if rule not in (*SILENT, "total"):
                stage = STAGE_OF_RULE.get(rule, rule)
                self.total[stage] = self.total.get(stage, 0) + int(count)

    def start(self, record: logging.LogRecord) -> None:
        if record.rule_name in SILENT and not (self.common_settings.dryrun and record.shellcmd):
            return
        log = Path(str(record.log[0]).partition(" (")[0]) if record.log else Path(record.rule_name)
        stage = STAGE_OF_RULE.get(record.rule_name, record.rule_name)
        if self.common_settings.dryrun:
            command = re.sub(r"^source \S+ \S+; ", "", record.shellcmd)
            reason = textwrap.shorten(str(record.reason), 120, placeholder=" ...")
            print(f"# {stage} {log.stem}: {reason}\n{command.strip()}", flush=True)
            return
        now = time.monotonic()
        self.jobs[record.jobid] = (stage, log.stem, str(log), now)
        if stage not in self.began:
            self.began[stage], self.done[stage] = now, 0
            self.say(f"{stage}: {self.total.get(stage, 1)} to run, logs in {log.parent}/")
            self.bars[stage] = tqdm(
                total=self.total.get(stage, 1), desc=stage, unit="job", leave=False, disable=not sys.stderr.isatty()
            )

    def finish(self, record: logging.LogRecord) -> None:
        if record.job_id not in self.jobs:
            return
        stage, name, _, began = self.jobs.pop(record.job_id)
        now = time.monotonic()
        self.done[stage] += 1
        self.bars[stage].update()
        self.say(f"  [{self.done[stage]}/{self.total[stage]}] {stage} {name}: {now - began:.0f} s")
        if self.done[stage] == self.total[stage]:
            self.bars[stage].close()
            self.say(f"{stage}: done in {now - self.began[stage]:.0f} s")

    def fail(self, record: logging.LogRecord) -> None:
        stage, name, log, began = self.jobs.pop(record.jobid, (record.rule_name, str(record.jobid), "", 0))
        self.failed.append(f"{stage} {name}")
        self.say(f"  {stage} {name}: FAILED after {time.monotonic() - began:.0f} s; the end of {log}:")
        if log and Path(log).is_file():
            lines = Path(log).read_text(errors="replace").replace("\r", "\n").splitlines()
            self.say("\n".join(f"    {line}" for line in lines[-TAIL:]))
        waiting = len(self.jobs)
        self.say(f"failed: {', '.join(self.failed)}" + (f"; waiting for {waiting} running jobs" if waiting else ""))
