"""The audit: is this verifier lossless, and if not, where, by how much, on which smallest instance, and why?"""

from .report import AuditReport, report_text
from .run import audit

__all__ = ["AuditReport", "audit", "report_text"]
