"""Whether a server on this machine answers: the image's health check."""

import http.client

from acouslic.errors import AcouslicError

_PATIENCE_S = 5.0


def check_server(port: int) -> None:
    """Ask `GET /health` of the server on `port`. Raises AcouslicError unless it answers 200 within 5 s."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        said = response.read(200).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        raise AcouslicError(f"nothing answers on port {port}: {error}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise AcouslicError(f"the server on port {port} answers {response.status}: {said}")
