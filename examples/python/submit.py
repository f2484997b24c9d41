#!/usr/bin/env python3
"""Submits a job to LeMo, watches it and fetches its result, with nothing but grpcio-tools and LeMo's proto files.

    pip install grpcio grpcio-tools
    python submit.py job.json --out result

JOB.json is a job spec. Data files that lie on this machine are uploaded; a model directory, which must lie on the
coordinator's host, is made known there under its own name. Lost connections and a coordinator that starts again are
waited for. The exit code is 0 when the job succeeded, 2 when something in it must change, else 1.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
import types
import uuid
from pathlib import Path

import grpc
from google.protobuf import json_format
from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
CHUNK_BYTES = 256 * 1024  # a message may have 4 MiB
CALL_SECONDS = 60
CHECK_SECONDS = 3600
PATIENCE_SECONDS = 300  # for a coordinator that is away
# What a call ends with when the connection or the coordinator went away; the same call may be made again.
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def make_stubs(proto, folder):
    """Compiles the proto files into Python modules in `folder` and imports them."""
    files = sorted(str(path) for path in proto.rglob("*.proto"))
    well_known = Path(protoc.__file__).parent / "_proto"  # google/protobuf/timestamp.proto and its like
    arguments = ["protoc", f"-I{proto}", f"-I{well_known}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    if not files or protoc.main(arguments + files) != 0:
        sys.exit(f"submit.py: {proto}: no proto files that compile; --proto names LeMo's folder proto/")
    sys.path.insert(0, folder)
    from google.rpc import error_details_pb2, status_pb2
    from lemo.v1 import (file_service_pb2, file_service_pb2_grpc, job_pb2, job_service_pb2, job_service_pb2_grpc,
                         job_spec_pb2, model_service_pb2, model_service_pb2_grpc)
    return types.SimpleNamespace(**locals())


def patiently(call):
    """Answers call(), made again while the coordinator is away."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() not in AWAY or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Client:
    """The service behind one address."""

    def __init__(self, pb, address):
        self.pb = pb
        # Keepalive finds a dead link; a short back-off finds a coordinator that is there again.
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.keepalive_time_ms", 10_000), ("grpc.max_reconnect_backoff_ms", 2_000)])
        self.jobs = pb.job_service_pb2_grpc.JobServiceStub(self.channel)
        self.files = pb.file_service_pb2_grpc.FileServiceStub(self.channel)
        self.models = pb.model_service_pb2_grpc.ModelServiceStub(self.channel)

    def call(self, method, request, seconds=CALL_SECONDS):
        return patiently(lambda: method(request, timeout=seconds))

    def upload(self, path):
        """The name of the file, which is sent from where an earlier upload of it broke off."""
        pb = self.pb.file_service_pb2
        digest = sha256_of(path)
        start = pb.UploadStart(
            # The same content has the same id: a second upload of it sends nothing.
            upload_id=str(uuid.UUID(digest[:32])), display_name=path.name, bytes=path.stat().st_size, sha256=digest)

        def requests(offset):
            yield pb.UploadFileRequest(start=start)
            with open(path, "rb") as file:
                file.seek(offset)
                while data := file.read(CHUNK_BYTES):
                    chunk = self.pb.job_service_pb2.DataChunk(offset=offset, data=data)
                    yield pb.UploadFileRequest(chunk=chunk)
                    offset += len(data)

        def send():
            known = self.files.GetUpload(pb.GetUploadRequest(upload_id=start.upload_id))
            return self.files.UploadFile(requests(known.received_bytes))

        return patiently(send).name

    def model(self, directory):
        """The name under which the service knows the model in that directory of the coordinator's host."""
        pb = self.pb.model_service_pb2
        name = f"models/{directory.name}"
        try:
            known = self.call(self.models.GetModel, pb.GetModelRequest(name=name))
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            known = self.call(self.models.AddModel, pb.AddModelRequest(model_id=directory.name, path=str(directory)))
        if known.path != str(directory):
            sys.exit(f"submit.py: {name} is {known.path}, not {directory}; add it under another name")
        return known.name

    def submit(self, spec, validate_only=False):
        # With a request_id of its own a call that is made again is still one job.
        request = self.pb.job_service_pb2.SubmitJobRequest(
            spec=spec, request_id=str(uuid.uuid4()), validate_only=validate_only)
        return self.call(self.jobs.SubmitJob, request, CHECK_SECONDS if validate_only else CALL_SECONDS)

    def watch(self, name):
        """Every event of the job, once and in order, until it has ended."""
        sequence = 0

        def follow():
            nonlocal sequence
            request = self.pb.job_service_pb2.WatchJobRequest(name=name, after_sequence=sequence)
            for message in self.jobs.WatchJob(request):
                if message.HasField("event"):  # else a heartbeat
                    sequence = message.event.sequence
                    yield message.event

        lost_at = None
        while True:
            try:
                for event in follow():
                    lost_at = None
                    yield event
                return
            except grpc.RpcError as error:
                lost_at = lost_at or time.monotonic()
                if error.code() not in AWAY or time.monotonic() - lost_at > PATIENCE_SECONDS:
                    raise
                print("connection lost; going on from event", sequence, file=sys.stderr)
                time.sleep(0.5)

    def fetch(self, job, artifact, folder):
        """Writes one file of the result; it appears under its name when its checksum is right."""
        target = (folder / artifact.path).resolve()
        if folder.resolve() not in target.parents:
            raise ValueError(f"{artifact.path} leads out of {folder}")
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{artifact.sha256[:16]}.part")

        def receive():
            with open(part, "ab") as file:  # what an earlier try has written stays
                request = self.pb.job_service_pb2.DownloadArtifactRequest(
                    name=job, path=artifact.path, offset=file.tell())
                for chunk in self.jobs.DownloadArtifact(request):
                    file.write(chunk.data)

        patiently(receive)
        if sha256_of(part) != artifact.sha256:
            part.unlink()
            raise ValueError(f"{artifact.path}: what came has another checksum; fetch it again")
        part.replace(target)

    def explain(self, error):
        """What is wrong, one line a fault: with a BadRequest, every faulty field of the request."""
        faults = []
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                for detail in self.pb.status_pb2.Status.FromString(value).details:
                    bad_request = self.pb.error_details_pb2.BadRequest()
                    if detail.Unpack(bad_request):
                        faults += [f"  {fault.field}: {fault.description}" for fault in bad_request.field_violations]
        return "\n".join([f"{error.code().name}:", *(faults or [f"  {error.details()}"])])


def put_inputs(client, spec):
    """Puts names of the service in place of local paths."""
    for data in [*spec.run.data.train, *spec.run.data.eval]:
        if Path(data.path).is_file():
            data.path = client.upload(Path(data.path))
    if Path(spec.run.model.path).is_dir():
        spec.run.model.path = client.model(Path(spec.run.model.path).resolve())


def describe(pb, event):
    """One line, or nothing for events that a person need not see."""
    kind = event.WhichOneof("event")
    if kind == "state":
        return f"{pb.job_pb2.Job.State.Name(event.state.to)}: {event.state.reason}"
    kind = event.run.WhichOneof("event")
    if kind == "step":
        step = event.run.step
        return f"step {step.step}/{step.steps}  loss {step.loss:.4f}  {step.tokens_per_second:.0f} tokens/s"
    if kind == "eval":
        return f"evaluation after step {event.run.eval.step}: loss {event.run.eval.loss:.4f}"
    if kind == "warning":
        return f"warning: {event.run.warning.message}"
    return None


def run(args, pb):
    client = Client(pb, args.coordinator)
    try:
        spec = json_format.ParseDict(json.loads(args.job.read_text()), pb.job_spec_pb2.JobSpec())
    except (json.JSONDecodeError, json_format.ParseError) as error:
        print(f"{args.job}: {error}", file=sys.stderr)
        return 2
    try:
        put_inputs(client, spec)
        # Every row of the data is checked, so this takes as long as reading it does. Without it the answer of the
        # submission comes at once, and faults of the data show as a job that failed.
        client.submit(spec, validate_only=True)
        job = client.submit(spec)
    except grpc.RpcError as error:
        print(client.explain(error), file=sys.stderr)
        return 2 if error.code() == grpc.StatusCode.INVALID_ARGUMENT else 1
    print(job.name, flush=True)
    for event in client.watch(job.name):
        if line := describe(pb, event):
            print(line, flush=True)
    job = client.call(client.jobs.GetJob, pb.job_service_pb2.GetJobRequest(name=job.name))
    if job.state != pb.job_pb2.Job.SUCCEEDED:
        for fault in job.failure.violations:
            print(f"  {fault.field}: {fault.reason}", file=sys.stderr)
        return 1
    for artifact in job.artifacts:
        client.fetch(job.name, artifact, args.out)
        print(f"{args.out / artifact.path}  {artifact.bytes} bytes")
    return 0


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path, metavar="JOB.json")
    parser.add_argument("--out", type=Path, default=Path("result"), help="folder for the result (result)")
    parser.add_argument("--coordinator", default="127.0.0.1:7410", metavar="HOST:PORT")
    parser.add_argument("--proto", type=Path, default=HERE.parent.parent / "proto", help="LeMo's proto files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lemo-stubs-") as folder:
        return run(args, make_stubs(args.proto, folder))


if __name__ == "__main__":
    sys.exit(main())
