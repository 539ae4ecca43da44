"""What jobc prints, letter for letter: the status of a job, and its output as JSON lines. Pure.

Here: from a job and its log chunks to text (requirements S3.7 and S3.8). Not here: asking and writing (`verbs.py`).
docs/small-clients.md has the tables.
"""

import codecs
import json
from collections.abc import Iterator

from cli.client.logs import STREAM_WORDS, entries
from cli.client.views import state_word
from common.quantities import format_time_ns
from proto.joblet.v1 import job_pb2, persist_pb2


def status_text(job: job_pb2.Job) -> str:
    """How S3.8 says it: `running`, `stopped (signal: 9)` or `finished (exit code: 0)`.

    S3 knows three forms. What has not ended is running, also while it waits for its turn. How a process ended is told
    by what the kernel said of it, whoever asked for the end. A job without such an end has a word of its own.
    """
    if job.HasField("exit_code"):
        return f"finished (exit code: {job.exit_code})"
    if job.HasField("signal"):
        return f"stopped (signal: {job.signal})"
    match job.state:
        case job_pb2.SCHEDULED | job_pb2.PENDING | job_pb2.STARTING | job_pb2.RUNNING:
            return "running"
        case job_pb2.FAILED:
            return "failed to start"
        case state:
            return state_word(state)


def remark(job: job_pb2.Job) -> str:
    """What the status does not tell, for stderr; empty when it tells all."""
    match job.state:
        case job_pb2.SCHEDULED:
            return "it is scheduled and has not started"
        case job_pb2.PENDING if job.queue_position:
            return f"it waits for its turn and has not started: place {job.queue_position}"
        case job_pb2.TIMED_OUT:
            return "it reached its run time limit"
        case _ if job.oom_killed:
            return "it ran out of memory"
        case _ if job.HasField("exit_code") or job.HasField("signal"):
            return ""
        case _:
            return job.reason


class LogLines:
    """Takes the chunks of one job in their order, and gives one JSON object for each entry.

    `log` is what the job wrote, its line end included, so that all of them one after the other are the output; a piece
    of a line without its end has none. A character that a piece cut in two stands in the second one; what is not UTF-8
    becomes U+FFFD. Everything beyond ASCII is escaped, so nothing of it reaches a terminal as a control character.
    """

    def __init__(self) -> None:
        self._decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in STREAM_WORDS}
        self._time_ns = 0

    def of(self, chunk: job_pb2.LogChunk) -> str:
        """The lines for `chunk`."""
        self._time_ns = chunk.timestamp
        decoder = self._decoders[chunk.stream]
        texts = (decoder.decode(content if partial else content + b"\n") for _, content, partial in entries(chunk))
        return "".join(self._object(chunk.stream, text) for text in texts if text)

    def end(self) -> str:
        """Nothing goes on behind this: the end of the output, or a gap. A character that was begun is given up."""
        return "".join(self._given_up())

    def _given_up(self) -> Iterator[str]:
        for stream, decoder in self._decoders.items():
            text = decoder.decode(b"", final=True)
            if text:
                yield self._object(stream, text)

    def _object(self, stream: persist_pb2.StreamType, text: str) -> str:
        time = time_text(self._time_ns)
        return f'{{ "log": {json.dumps(text)}, "stream": "{STREAM_WORDS[stream]}", "time": "{time}" }}\n'


def time_text(time_ns: int) -> str:
    """RFC 3339 in UTC with a fraction always, as in the sample of S3.7: `2022-01-24T10:00:00.0Z`."""
    text = format_time_ns(time_ns)
    return text if "." in text else text.replace("Z", ".0Z")
