"""Classes for the messages of a protobuf file, from a schema in Python: no compiler and no generated code."""

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = re.compile(r"(repeated )?(\w+) (\w+) = (\d+)(?: \[default = (.*?)\])?")


def message_classes(package: str, schema: Mapping[str, str]) -> dict[str, Any]:
    """A class for each message of a schema.

    Args:
        package: a name of its own.
        schema: the fields of each message, as in a .proto file of proto2: 'string name = 1; repeated Blob blobs = 2'. Fields
            are optional unless they are repeated. A file may have more of them; they are skipped.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto2")
    for message, fields in schema.items():
        added = file.message_type.add(name=message)
        for repeated, kind, name, number, default in _FIELD.findall(fields):
            field = added.field.add(name=name, number=int(number), default_value=default or None)
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if kind in schema:
                field.type_name = f".{package}.{kind}"
            else:
                field.type = field.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in schema}
