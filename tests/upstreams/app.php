<?php
// The application behind php-fpm. PATH_INFO says how it behaves: /BEHAVIOUR[/NUMBER][/anything].
$words = explode('/', substr($_SERVER['PATH_INFO'] ?? '', 1));
switch ($words[0]) {
    case 'segv':
        // array_map calls back from C: a recursion through it ends at the guard page of the stack.
        ini_set('memory_limit', '-1');
        function deeper() { array_map('deeper', [1]); }
        deeper();
        break;
    case 'hang':
        sleep(3600);
        break;
    case 'slow':
        usleep(1000 * (int) ($words[1] ?? 100));
        break;
    case 'status':
        http_response_code((int) ($words[1] ?? 502));
        break;
}
header('Content-Type: text/plain');
echo "hello from php\n";
