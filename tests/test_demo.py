"""The demo of docs/demo, in a browser."""

import importlib.util
import shutil
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore')]
DEMO = Path(__file__).parents[1] / 'docs' / 'demo' / 'app.py'


def test_a_picture_is_corrupted_and_attacked() -> None:
    pytest.importorskip('gradio')
    browsers = pytest.importorskip('playwright.sync_api')
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if chromium is None:
        pytest.skip('no Chromium is installed')
    spec = importlib.util.spec_from_file_location('demo', DEMO)
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    server = demo.build()
    _, url, _ = server.launch(prevent_thread_lock=True, server_name='127.0.0.1', quiet=True)
    try:
        with browsers.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
            page = browser.new_page(viewport={'width': 390, 'height': 844})
            page.set_default_timeout(120_000)
            page.goto(url)
            page.get_by_role('button', name='Look').click()
            page.get_by_text('Choose a picture first.').wait_for()
            page.set_input_files('input[type=file]', demo.EXAMPLES[0])
            page.get_by_label('number input for attack: largest change of a value, in levels of 255').fill('8')
            page.get_by_role('button', name='Look').click()
            page.get_by_test_id('label-output-value').nth(3).wait_for()
            seen = page.get_by_test_id('label-output-value').all_inner_texts()
            browser.close()
    finally:
        server.close()
    assert len(seen) == 4
    assert {*seen} <= {*demo.CLASSES}
    assert seen[2] == 'cat'  # the P2BE network on the cat, before the attack
    assert seen[3] != 'cat'
