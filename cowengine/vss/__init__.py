"""Coordinated snapshots and backups: requestor, writers, providers, documents, ledger. The public names; no logic."""

from __future__ import annotations

from cowengine.vss.discovery import configured_writer_names, load_provider, load_writers, provider_names, writer_names
from cowengine.vss.documents import BackupComponents, Component, WriterMetadata, WriterRecord
from cowengine.vss.job import Job, Progress
from cowengine.vss.ledger import FreezeLedger, LedgerEntry
from cowengine.vss.provider import EngineProvider, Provider, ProviderSet
from cowengine.vss.requestor import Requestor
from cowengine.vss.writer import JobView, SetSummary, Writer

__all__ = [
    "BackupComponents",
    "Component",
    "EngineProvider",
    "FreezeLedger",
    "Job",
    "JobView",
    "LedgerEntry",
    "Progress",
    "Provider",
    "ProviderSet",
    "Requestor",
    "SetSummary",
    "Writer",
    "WriterMetadata",
    "WriterRecord",
    "configured_writer_names",
    "load_provider",
    "load_writers",
    "provider_names",
    "writer_names",
]
