"""A browser, led by web/drive.mjs (a web client) or web/page.mjs (a server's own page): a line tells it what to do, a line
answers."""

import json
import shutil
import subprocess

import client


class Browser:
    """One browser, without a screen. `do` names an act of its driver, `act` passes on a line that does."""

    def __init__(self, web, chromium, folder, driver="drive.mjs"):
        words = ["node", web / driver, web / "page", folder / "browser", shutil.which(chromium)]
        self._log = open(folder / "browser.log", "w")
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, bufsize=1
        )

    def act(self, line):
        self._process.stdin.write(line + "\n")
        return self._process.stdout.readline().strip() or "no: the browser's driver ended"

    def do(self, act, *words):
        answer = self.act(json.dumps([act, *(str(word) for word in words)]))
        if answer != "ok":
            raise client.Unmet(f"in the browser, {act} {words}: {answer}")

    def end(self):
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()
